"""MoCo v3 with ConvNeXt V2 Atto on the built-in sample set: minutes on two CPU cores.

Projector and predictor are narrower than on ImageNet. A batch of 32 has few negatives.
"""

_base_ = "_base_/sample.py"

# knobs
temperature = 0.2

projector = dict(
    type="NonLinearNeck",
    in_channels=320,
    hid_channels=1024,
    out_channels=128,
    num_layers=3,
    with_bias=False,
    with_last_bn=True,
    with_last_bn_affine=False,
    with_last_bias=False,
    with_avg_pool=False,  # the encoder averages
    norm_cfg=dict(type="BN1d"),
)
model = dict(
    type="MoCoV3",
    base_momentum=0.01,
    backbone=dict(type="ConvNeXtV2", arch="atto"),
    neck=projector,
    head=dict(
        type="MoCoV3Head",
        predictor=dict(projector, in_channels=128, num_layers=2),
        loss=dict(type="CrossEntropyLoss", loss_weight=2 * temperature),
        temperature=temperature,
    ),
)


def view(blur: float, solarize: float) -> list:
    """Augmentation of one of the two views, with the probabilities in which they differ."""
    jitter = dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return [
        dict(
            type="RandomResizedCrop",
            scale=_base_.image_size,
            crop_ratio_range=(0.08, 1.0),
            backend="pillow",
        ),
        dict(type="RandomApply", transforms=[jitter], prob=0.8),
        dict(
            type="RandomGrayscale",
            prob=0.2,
            keep_channels=True,
            channel_weights=(0.114, 0.587, 0.2989),
        ),
        dict(type="GaussianBlur", magnitude_range=(0.1, 2.0), magnitude_std="inf", prob=blur),
        dict(type="Solarize", thr=128, prob=solarize),
        dict(type="RandomFlip", prob=0.5),
    ]


train_pipeline = [
    dict(type="LoadImage"),
    dict(
        type="MultiView",
        num_views=[1, 1],
        transforms=[view(blur=1.0, solarize=0.0), view(blur=0.1, solarize=0.2)],
    ),
    dict(type="PackInputs"),
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))

optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.999), weight_decay=0.1))
