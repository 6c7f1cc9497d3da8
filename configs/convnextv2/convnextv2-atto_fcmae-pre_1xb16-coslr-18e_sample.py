"""A classifier of ten digits on the built-in sample set: minutes on two CPU cores.

Run `fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py` first, as `make demo` does. The recipe is
ours, chosen for so few steps: the rate of pre-training would not get anywhere in them.
"""

_base_ = "../_base_/classification.py"

# knobs
data_root = "data/sample_set/classification"
pretrained = "work_dirs/demo/fcmae/epoch_12.pth"
image_size = 96  # pixels
batch_size_per_gpu = 16
num_workers = 2
base_batch_size = 16
max_epochs = 18  # of 93 steps
warmup_iters = 30
base_lr = 1.6e-2  # per 256 images
weight_decay = 0.05
max_grad_norm = 5.0

model = dict(
    data_preprocessor=dict(num_classes=10),
    backbone=dict(arch="atto", init_cfg=dict(type="Pretrained", checkpoint=pretrained)),
    head=dict(
        num_classes=10,
        in_channels=320,
        init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02),
    ),
)

# The held-out digits are of other writers: turned, slanted and tinted copies stand in for them. A
# digit must neither be mirrored nor cut through.
either_way = dict(magnitude_std="inf", random_negative_prob=0.5, interpolation="bilinear")
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="RandomResizedCrop",
        scale=image_size,
        crop_ratio_range=(0.85, 1.0),
        aspect_ratio_range=(0.9, 1.1),
        backend="pillow",
        interpolation="bicubic",
    ),
    dict(type="Rotate", magnitude_range=(0, 15), prob=0.7, pad_val=0, **either_way),
    dict(type="Shear", magnitude_range=(0, 0.2), prob=0.5, pad_val=0, **either_way),
    dict(type="ColorJitter", brightness=0.2, contrast=0.2, saturation=0.3, hue=0.1),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(image_size, image_size), backend="pillow", interpolation="bicubic"),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=batch_size_per_gpu,
    num_workers=num_workers,
    pin_memory=False,
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type="CustomDataset",
            data_root=data_root,
            data_prefix="train",
            pipeline=train_pipeline,
        )
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=num_workers,
    pin_memory=False,
    dataset=dict(
        _delete_=True,
        type="CustomDataset",
        data_root=data_root,
        data_prefix="val",
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(
        type="AdamW",
        lr=base_lr * base_batch_size / 256,
        betas=(0.9, 0.999),
        weight_decay=weight_decay,
        fused=True,
    ),
    constructor="WeightDecayOptimWrapperConstructor",
    clip_grad=dict(max_norm=max_grad_norm),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type="CosineAnnealingLR",
        eta_min=0.0,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=6)
auto_scale_lr = dict(base_batch_size=base_batch_size)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=6))
