"""The classifier of ten digits, after SimMIM on the sample set."""

_base_ = "../../convnextv2/convnextv2-atto_fcmae-pre_1xb16-coslr-18e_sample.py"

# knobs
pretrained = "work_dirs/simmim_convnextv2-atto_1xb32-coslr-12e_sample/epoch_12.pth"

model = dict(backbone=dict(init_cfg=dict(checkpoint=pretrained)))
