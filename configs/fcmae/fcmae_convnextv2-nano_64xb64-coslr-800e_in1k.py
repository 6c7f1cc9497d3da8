_base_ = "../_base_/fcmae.py"

model = dict(backbone=dict(arch="nano"), neck=dict(in_channels=640))
