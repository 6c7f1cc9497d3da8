_base_ = "../_base_/fcmae.py"

model = dict(backbone=dict(arch="large"), neck=dict(in_channels=1536))
