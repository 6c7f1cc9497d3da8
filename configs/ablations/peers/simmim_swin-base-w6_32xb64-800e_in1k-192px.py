"""SimMIM with Swin-B: mmpretrain's algorithm and recipe."""

_base_ = "_base_/simmim.py"

model = dict(
    type="SimMIM",
    backbone=dict(
        type="SimMIMSwinTransformer",
        arch="base",
        img_size=_base_.image_size,
        stage_cfgs=dict(block_cfgs=dict(window_size=6)),
    ),
)
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={"relative_position_bias_table": dict(decay_mult=0.0)},
    ),
)
