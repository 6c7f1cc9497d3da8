"""SimMIM (https://arxiv.org/abs/2111.09886): images, masks and recipe, for any encoder."""

_base_ = "pretraining.py"

# knobs
image_size = 192  # pixels
mask_ratio = 0.6
patch_size = 4  # pixels; squares of 32 pixels are removed, as patches of this size
max_epochs = 800
warmup_epochs = 10
milestone = 700  # epoch from which on the rate is a tenth
base_lr = 5e-5  # per 256 images
base_batch_size = 2048  # 32 GPUs x 64 images

train_pipeline = [
    dict(type="LoadRandomResizedCrop", scale=image_size, crop_ratio_range=(0.67, 1.0)),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="SimMIMMaskGenerator",
        input_size=image_size,
        mask_patch_size=32,
        model_patch_size=patch_size,
        mask_ratio=mask_ratio,
    ),
    dict(type="PackInputs"),
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))

model = dict(
    neck=dict(type="SimMIMLinearDecoder", in_channels=1024, encoder_stride=32),
    head=dict(
        type="SimMIMHead",
        patch_size=patch_size,
        loss=dict(type="PixelReconstructionLoss", criterion="L1", channel=3),
    ),
)

optim_wrapper = dict(
    optimizer=dict(lr=base_lr * base_batch_size / 256, betas=(0.9, 0.999)),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=5e-3,
        by_epoch=True,
        begin=0,
        end=warmup_epochs,
        convert_to_iter_based=True,
    ),
    dict(
        type="MultiStepLR",
        milestones=[milestone],
        by_epoch=True,
        begin=warmup_epochs,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=base_batch_size)
