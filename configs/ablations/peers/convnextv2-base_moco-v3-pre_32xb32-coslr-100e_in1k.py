"""The fine-tuning recipe of Base, after MoCo v3."""

_base_ = "../../convnextv2/convnextv2-base_fcmae-pre_32xb32-coslr-100e_in1k.py"

# knobs
pretrained = "work_dirs/moco-v3_convnextv2-base_64xb64-coslr-300e_in1k/epoch_300.pth"

model = dict(backbone=dict(init_cfg=dict(checkpoint=pretrained)))
