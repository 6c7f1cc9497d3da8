_base_ = "../_base_/fcmae.py"

model = dict(backbone=dict(arch="pico"), neck=dict(in_channels=512))
