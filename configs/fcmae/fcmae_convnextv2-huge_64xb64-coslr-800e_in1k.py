_base_ = "../_base_/fcmae.py"

model = dict(backbone=dict(arch="huge"), neck=dict(in_channels=2816))
