"""ViT and Swin on ImageNet-1K, fine-tuned or from scratch: images and evaluation of ConvNeXt V2.

Recipes are those of mmpretrain's configs. A child names the network and the numbers that differ.
mmpretrain's networks load `init_cfg` leniently: the log lists what a file lacks.
"""

_base_ = "../../../_base_/classification.py"

# knobs
base_batch_size = 1024  # 32 GPUs x 32 images

model = dict(
    head=dict(init_cfg=dict(type="TruncNormal", layer="Linear", std=2e-5)),
    # Each batch gets one of the two, as in timm with a switch probability of 0.5.
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]),
)
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    optimizer=dict(type="AdamW", betas=(0.9, 0.999), weight_decay=0.05),
    constructor="LearningRateDecayOptimWrapperConstructor",  # mmpretrain's
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={
            ".cls_token": dict(decay_mult=0.0),
            ".pos_embed": dict(decay_mult=0.0),
        },
    ),
)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=20,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-6,
        by_epoch=True,
        begin=20,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=base_batch_size)
