"""SimMIM with ConvNeXt V2 Atto on the built-in sample set: minutes on two CPU cores."""

_base_ = "_base_/sample.py"

# knobs
mask_ratio = 0.6
patch_size = 4  # pixels; squares of 32 pixels are removed, as patches of this size

train_pipeline = [
    dict(type="LoadRandomResizedCrop", scale=_base_.image_size, crop_ratio_range=(0.67, 1.0)),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="SimMIMMaskGenerator",
        input_size=_base_.image_size,
        mask_patch_size=32,
        model_patch_size=patch_size,
        mask_ratio=mask_ratio,
    ),
    dict(type="PackInputs"),
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))

model = dict(
    type="ConvNetSimMIM",
    backbone=dict(type="ConvNeXtV2", arch="atto", gap_before_final_norm=False, output_norms=False),
    neck=dict(type="SimMIMLinearDecoder", in_channels=320, encoder_stride=32),
    head=dict(
        type="SimMIMHead",
        patch_size=patch_size,
        loss=dict(type="PixelReconstructionLoss", criterion="L1", channel=3),
    ),
)
optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.999)), clip_grad=dict(max_norm=5.0))
