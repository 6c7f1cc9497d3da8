"""MoCo v3 with ConvNeXt V2 Atto on the built-in sample set: minutes on two CPU cores.

Projector and predictor are narrower than on ImageNet. A batch of 32 has few negatives.
"""

_base_ = ["_base_/sample.py", "_base_/moco_v3.py"]

neck = dict(
    _base_.projector,
    in_channels=320,
    hid_channels=1024,
    out_channels=128,
    norm_cfg=dict(type="BN1d"),
)
model = dict(
    type="MoCoV3",
    base_momentum=0.01,
    backbone=dict(type="ConvNeXtV2", arch="atto"),
    neck=neck,
    head=dict(_base_.moco_v3_head, predictor=dict(neck, in_channels=128, num_layers=2)),
)
train_pipeline = _base_.views_pipeline
for view in train_pipeline[1].transforms:
    view[0].scale = _base_.image_size
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))

optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.999), weight_decay=0.1))
