"""FCMAE pre-training on ImageNet-1K (paper, section 3 and appendix A.2, table 8).

A child sets the architecture, and other images or another schedule where it has them. Rates are
absolute: the base rate times the batch that it was tuned for, divided by 256. `--auto-scale-lr`
rescales them to yours. The knobs are used where they are written: `--cfg-options` sets the keys
that are built from them, such as `train_cfg.max_epochs`.
"""

_base_ = "default_runtime.py"

# knobs
data_root = "data/imagenet"
split = "train"  # a subfolder of data_root, or None for all of it
image_size = 224  # pixels, a multiple of 32
mask_ratio = 0.6
batch_size_per_gpu = 64
num_workers = 8
max_epochs = 800
warmup_epochs = 40
base_lr = 1.5e-4  # per 256 images
base_batch_size = 4096  # 64 GPUs x 64 images

default_scope = "mmpretrain"

model = dict(
    type="FCMAE",
    data_preprocessor=dict(
        type="FCMAEDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
        mask_ratio=mask_ratio,
    ),
    backbone=dict(
        type="ConvNeXtV2",
        arch="tiny",
        gap_before_final_norm=False,
        output_norms=False,
        mask_layout="packed",
    ),
    neck=dict(type="FCMAEDecoder", in_channels=768, num_channels=512, depth=1),
    head=dict(type="FCMAEHead", norm_pix=True),
)

# The official code flips as well, though the paper names random resized crops only.
train_pipeline = [
    # Bicubic. It decodes what the crop needs; LoadImage and RandomResizedCrop give the same crops.
    dict(type="LoadRandomResizedCrop", scale=image_size, crop_ratio_range=(0.2, 1.0)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]

train_dataloader = dict(
    batch_size=batch_size_per_gpu,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="StatelessSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="StatelessDataset",
        dataset=dict(type="ImageFolder", data_root=data_root, split=split, pipeline=train_pipeline),
    ),
)

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(
        type="AdamW",
        lr=base_lr * base_batch_size / 256,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        fused=True,  # one pass over memory instead of a dozen
    ),
    # Biases, norms, GRN and the mask token are not decayed.
    constructor="WeightDecayOptimWrapperConstructor",
)

# Per iteration: linear from 0 over the warm-up, then half a cosine to 0 at the last epoch.
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-8,
        by_epoch=True,
        begin=0,
        end=warmup_epochs,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        eta_min=0.0,
        by_epoch=True,
        begin=warmup_epochs,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(type="ResumableEpochLoop", max_epochs=max_epochs)

auto_scale_lr = dict(base_batch_size=base_batch_size)

custom_hooks = [*_base_.custom_hooks, dict(type="ReconstructionHook", interval=20)]
