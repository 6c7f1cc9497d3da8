"""MoCo v3 (https://arxiv.org/abs/2104.02057) for any encoder: parts and views, mmpretrain's.

A child puts them together with its encoder and its widths, and sets the size of the crops.
"""

# knobs
temperature = 0.2

projector = dict(
    type="NonLinearNeck",
    num_layers=3,
    with_bias=False,
    with_last_bn=True,
    with_last_bn_affine=False,
    with_last_bias=False,
    with_avg_pool=False,  # the encoder averages
)
moco_v3_head = dict(
    type="MoCoV3Head",
    loss=dict(type="CrossEntropyLoss", loss_weight=2 * temperature),
    temperature=temperature,
)


def view(blur: float, solarize: float) -> list:
    """Augmentation of one of the two views, with the probabilities in which they differ."""
    jitter = dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return [
        dict(
            type="RandomResizedCrop",
            scale=224,
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


views_pipeline = [
    dict(type="LoadImage"),
    dict(
        type="MultiView",
        num_views=[1, 1],
        transforms=[view(blur=1.0, solarize=0.0), view(blur=0.1, solarize=0.2)],
    ),
    dict(type="PackInputs"),
]
