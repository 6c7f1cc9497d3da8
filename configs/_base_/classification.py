"""ImageNet-1K classification: data, augmentation and evaluation that all its recipes share.

As in the official fine-tuning code, in mmpretrain's terms: RandAugment is timm's
rand-m9-mstd0.5-inc1, random erasing its pixel mode.
"""

_base_ = "default_runtime.py"

# knobs
data_root = "data/imagenet"
image_size = 224  # pixels
batch_size_per_gpu = 32
num_workers = 8

default_scope = "mmpretrain"

mean = [123.675, 116.28, 103.53]  # RGB
std = [58.395, 57.12, 57.375]

model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(
        type="ClsDataPreprocessor", num_classes=1000, mean=mean, std=std, to_rgb=True
    ),
    backbone=dict(type="ConvNeXtV2", arch="tiny"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=768,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1),
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="RandomResizedCrop",
        scale=image_size,
        crop_ratio_range=(0.08, 1.0),
        backend="pillow",
        interpolation="bicubic",
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandAugment",
        policies="timm_increasing",
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[round(value) for value in mean[::-1]], interpolation="bicubic"),
    ),
    # In the official code for every size, though in none of the paper's tables.
    dict(
        type="RandomErasing",
        erase_prob=0.25,
        mode="rand",
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=mean[::-1],
        fill_std=std[::-1],
    ),
    dict(type="PackInputs"),
]
# The central 7/8 of an image. From 384 px on the official code warps the whole image instead.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="ResizeEdge",
        scale=int(image_size / 0.875),
        edge="short",
        backend="pillow",
        interpolation="bicubic",
    ),
    dict(type="CenterCrop", crop_size=image_size),
    dict(type="PackInputs"),
]

train_dataloader = dict(
    batch_size=batch_size_per_gpu,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="StatelessSampler", shuffle=True),
    dataset=dict(
        type="StatelessDataset",
        dataset=dict(type="ImageNet", data_root=data_root, split="train", pipeline=train_pipeline),
    ),
)
val_dataloader = dict(
    batch_size=batch_size_per_gpu,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ImageNet", data_root=data_root, split="val", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator

train_cfg = dict(type="ResumableEpochLoop", max_epochs=100, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

default_hooks = dict(visualization=dict(type="VisualizationHook", enable=False))
visualizer = dict(type="UniversalVisualizer")
