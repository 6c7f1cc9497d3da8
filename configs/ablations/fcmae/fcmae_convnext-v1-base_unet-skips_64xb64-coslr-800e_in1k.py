_base_ = "../../fcmae/fcmae_convnext-v1-base_64xb64-coslr-800e_in1k.py"

model = dict(
    backbone=dict(out_indices=(0, 1, 2, 3)),
    neck=dict(_delete_=True, type="FCMAEUNetDecoder", in_channels=[128, 256, 512, 1024]),
)
