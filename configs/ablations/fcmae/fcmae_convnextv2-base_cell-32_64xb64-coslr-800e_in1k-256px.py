"""What cells of 64 pixels are compared with: 224 is no multiple of 64, so both read 256 pixels."""

_base_ = "../../fcmae/fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"

image_size = 256
train_pipeline = _base_.train_pipeline
train_pipeline[0].scale = image_size
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
