"""UperNet of Atto on the digits of the built-in sample set: minutes on two CPU cores.

It starts from the digit classifier of the demo, and shows digits at the size that it knows: images
of 128 px are scaled to 96. Everything that costs time is narrowed: 64 channels, three pooling
scales, no auxiliary head. No flips: a mirrored digit is no digit.
"""

_base_ = "../_base_/upernet.py"

# knobs
data_root = "data/sample_set/segmentation"
pretrained = "work_dirs/demo/classification/epoch_18.pth"
image_size = 96  # pixels
width = 64  # channels of the head
batch_size = 16
max_iters = 1_000
warmup_iters = 50
lr = 2e-3

classes = ("background", *(f"digit_{digit}" for digit in range(10)))
palette = [
    [0, 0, 0],
    [230, 25, 75],
    [60, 180, 75],
    [255, 225, 25],
    [0, 130, 200],
    [245, 130, 48],
    [145, 30, 180],
    [70, 240, 240],
    [240, 50, 230],
    [210, 245, 60],
    [250, 190, 212],
]
num_classes = len(classes)

norm_cfg = dict(type="BN", requires_grad=True)
losses = [
    dict(type="CrossEntropyLoss", use_sigmoid=False, avg_non_ignore=True),
    dict(type="DiceLoss", use_sigmoid=False, loss_weight=1.0),
]
model = dict(
    data_preprocessor=dict(size=(image_size, image_size)),
    backbone=dict(arch="atto", drop_path_rate=0.0, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(
        in_channels=_base_.sizes.atto.channels,
        channels=width,
        pool_scales=(1, 2, 3),
        dropout_ratio=0.0,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        loss_decode=losses,
    ),
    auxiliary_head=None,
    test_cfg=dict(_delete_=True, mode="whole"),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(
        type="RandomResize",
        scale=(image_size, image_size),
        ratio_range=(0.8, 1.1),
        keep_ratio=True,
    ),
    dict(type="RandomCrop", crop_size=(image_size, image_size)),
    dict(type="RandomRotate", prob=0.7, degree=15, pad_val=0, seg_pad_val=255),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (image_size, image_size)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type="Resize", scale=(image_size, image_size), keep_ratio=True)
]
tta_pipeline[1].transforms[1] = [dict(type="RandomFlip", prob=0.0)]

dataset = dict(
    _delete_=True,
    type="BaseSegDataset",
    data_root=data_root,
    metainfo=dict(classes=classes, palette=palette),
    reduce_zero_label=True,
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    pin_memory=False,
    dataset=dict(
        dataset=dict(
            dataset,
            data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
            pipeline=train_pipeline,
        )
    ),
)
val_dataloader = dict(
    batch_size=20,
    num_workers=2,
    dataset=dict(
        dataset,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(lr=lr, fused=True),
    clip_grad=dict(max_norm=5.0),
    # At the head's rate the encoder forgets the digits before the head has learned to use them.
    paramwise_cfg=dict(decay_rate=0.7, num_layers=6),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.02, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type="CosineAnnealingLR",
        eta_min=0.0,
        by_epoch=False,
        begin=warmup_iters,
        end=max_iters,
    ),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
auto_scale_lr = dict(base_batch_size=batch_size)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=max_iters))
