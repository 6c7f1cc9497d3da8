"""`convnextv2_in22k_in1k.py` at 512 px, which the paper does for Huge."""

_base_ = "convnextv2_in22k_in1k_384px.py"

# knobs
image_size = 512  # pixels

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = image_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (image_size, image_size)
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
