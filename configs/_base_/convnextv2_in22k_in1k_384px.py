"""`convnextv2_in22k_in1k.py` at 384 px: evaluated on the whole image, warped to a square."""

_base_ = "convnextv2_in22k_in1k.py"

# knobs
image_size = 384  # pixels

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = image_size
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="Resize",
        scale=(image_size, image_size),
        backend="pillow",
        interpolation="bicubic",
    ),
    dict(type="PackInputs"),
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
