"""Paper, table 2d: LayerNorm in GRN's place. Fine-tuning."""

_base_ = "../../convnextv2/convnextv2-base_fcmae-800e-pre_32xb32-coslr-100e_in1k.py"

# knobs
pretrained = "work_dirs/fcmae_convnextv2-base_ln_64xb64-coslr-800e_in1k/epoch_800.pth"

model = dict(backbone=dict(response_norm="ln", init_cfg=dict(checkpoint=pretrained)))
