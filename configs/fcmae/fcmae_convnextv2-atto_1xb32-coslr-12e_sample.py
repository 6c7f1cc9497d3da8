"""FCMAE of Atto on the built-in sample set: minutes on two CPU cores.

Make the images with `tools/dataset_converters/make_sample_set.py data/sample_set`. The rate is what
was found to work for so few steps, 32 times the paper's.
"""

_base_ = "fcmae_convnextv2-tiny_1xb64-coslr-400e_folder.py"

# knobs
data_root = "data/sample_set/pretrain"
image_size = 160
batch_size_per_gpu = 32
num_workers = 2
base_batch_size = 32
max_epochs = 12
warmup_epochs = 1
base_lr = 4.8e-3  # per 256 images

model = dict(backbone=dict(arch="atto"), neck=dict(in_channels=320))
train_pipeline = _base_.train_pipeline
train_pipeline[0].scale = image_size
train_dataloader = dict(
    batch_size=batch_size_per_gpu,
    num_workers=num_workers,
    pin_memory=False,
    dataset=dict(dataset=dict(data_root=data_root, pipeline=train_pipeline)),
)
optim_wrapper = dict(optimizer=dict(lr=base_lr * base_batch_size / 256))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = warmup_epochs
param_scheduler[1].begin = warmup_epochs
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=base_batch_size)
# Pictures and checkpoints every four epochs.
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=4))
custom_hooks = _base_.custom_hooks
custom_hooks[-1].interval = 4
