_base_ = "../_base_/fcmae.py"

model = dict(backbone=dict(arch="atto"), neck=dict(in_channels=320))
