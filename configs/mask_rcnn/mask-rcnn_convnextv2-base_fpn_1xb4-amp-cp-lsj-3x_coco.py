"""For one GPU of 24 GB: a smaller batch, the rate scaled linearly, activation checkpointing."""

_base_ = "mask-rcnn_convnextv2-base_fpn_8xb4-amp-lsj-3x_coco.py"

# knobs
batch_size_per_gpu = 4
base_batch_size = 4
lr = _base_.lr * base_batch_size / _base_.base_batch_size

model = dict(backbone=dict(with_cp=True))
train_dataloader = dict(batch_size=batch_size_per_gpu)
optim_wrapper = dict(optimizer=dict(lr=lr))
auto_scale_lr = dict(base_batch_size=base_batch_size)
