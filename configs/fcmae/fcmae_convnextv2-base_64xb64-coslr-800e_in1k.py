_base_ = "../_base_/fcmae.py"

model = dict(backbone=dict(arch="base"), neck=dict(in_channels=1024))
