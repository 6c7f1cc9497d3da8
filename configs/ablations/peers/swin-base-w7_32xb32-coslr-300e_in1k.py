"""Swin-B from scratch, supervised: mmpretrain's recipe."""

_base_ = "_base_/transformer_in1k.py"

# knobs
lr = 1e-3
max_epochs = 300
min_lr = 1e-5

model = dict(
    backbone=dict(
        _delete_=True, type="SwinTransformer", arch="base", img_size=224, drop_path_rate=0.5
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(in_channels=1024, init_cfg=dict(std=0.02)),
    init_cfg=[
        dict(type="TruncNormal", layer="Linear", std=0.02),
        dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
    ],
)
optim_wrapper = dict(
    optimizer=dict(lr=lr),
    paramwise_cfg=dict(custom_keys={".relative_position_bias_table": dict(decay_mult=0.0)}),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = _base_.param_scheduler
param_scheduler[1].eta_min = min_lr
train_cfg = dict(max_epochs=max_epochs)
