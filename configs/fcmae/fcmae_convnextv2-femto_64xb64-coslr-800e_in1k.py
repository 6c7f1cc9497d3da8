_base_ = "../_base_/fcmae.py"

model = dict(backbone=dict(arch="femto"), neck=dict(in_channels=384))
