"""MoCo v3 (https://arxiv.org/abs/2104.02057) with ConvNeXt V2 (paper, appendix D).

mmpretrain's algorithm, its recipe of a ViT; the paper says of its own no more than "default".
"""

_base_ = ["_base_/pretraining.py", "_base_/moco_v3.py"]

# knobs
max_epochs = 300
base_lr = 1.5e-4  # per 256 images
base_batch_size = 4096  # 64 GPUs x 64 images

neck = dict(_base_.projector, in_channels=1024, hid_channels=4096, out_channels=256)
model = dict(
    type="MoCoV3",
    base_momentum=0.01,
    backbone=dict(type="ConvNeXtV2", arch="base"),
    neck=neck,
    head=dict(_base_.moco_v3_head, predictor=dict(neck, in_channels=256, num_layers=2)),
)
train_pipeline = _base_.views_pipeline
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))

optim_wrapper = dict(
    optimizer=dict(lr=base_lr * base_batch_size / 256, betas=(0.9, 0.999), weight_decay=0.1)
)
train_cfg = dict(max_epochs=max_epochs)
