_base_ = "../_base_/fcmae.py"

model = dict(backbone=dict(arch="tiny"), neck=dict(in_channels=768))
