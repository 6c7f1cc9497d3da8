_base_ = "../_base_/convnextv2_in22k.py"

# knobs
image_size = 384  # pixels

model = _base_.recipes.huge.model
optim_wrapper = _base_.recipes.huge.optim_wrapper
recipes = None

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
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
