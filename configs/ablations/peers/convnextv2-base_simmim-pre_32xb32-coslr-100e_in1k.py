"""The fine-tuning recipe of Base, after SimMIM."""

_base_ = "../../convnextv2/convnextv2-base_fcmae-pre_32xb32-coslr-100e_in1k.py"

# knobs
pretrained = "work_dirs/simmim_convnextv2-base_32xb64-800e_in1k-192px/epoch_800.pth"

model = dict(backbone=dict(init_cfg=dict(checkpoint=pretrained)))
