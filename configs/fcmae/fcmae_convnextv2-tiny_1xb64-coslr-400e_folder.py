"""FCMAE on any folder of images, nested or flat, on one GPU.

`mmconvnextv2 pretrain --data FOLDER` fills in folder, architecture and batch for you.
"""

_base_ = "fcmae_convnextv2-tiny_64xb64-coslr-800e_in1k.py"

# knobs
data_root = "data/images"
split = None
batch_size_per_gpu = 64
base_batch_size = 64
max_epochs = 400
warmup_epochs = 20
base_lr = 1.5e-4  # per 256 images, the paper's

train_dataloader = dict(
    batch_size=batch_size_per_gpu,
    dataset=dict(dataset=dict(data_root=data_root, split=split)),
)
optim_wrapper = dict(optimizer=dict(lr=base_lr * base_batch_size / 256))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = warmup_epochs
param_scheduler[1].begin = warmup_epochs
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=base_batch_size)
