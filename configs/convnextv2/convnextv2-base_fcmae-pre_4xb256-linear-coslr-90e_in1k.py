_base_ = "../_base_/convnextv2_linear.py"

# knobs
pretrained = "work_dirs/fcmae_convnextv2-base_64xb64-coslr-1600e_in1k/epoch_1600.pth"

model = dict(
    backbone=dict(arch="base", init_cfg=dict(checkpoint=pretrained)), head=dict(in_channels=1024)
)
