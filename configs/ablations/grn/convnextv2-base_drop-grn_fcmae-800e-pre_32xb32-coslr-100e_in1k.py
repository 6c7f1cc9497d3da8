"""Paper, table 2f: GRN in pre-training, none in fine-tuning."""

_base_ = "../../convnextv2/convnextv2-base_fcmae-800e-pre_32xb32-coslr-100e_in1k.py"

model = dict(backbone=dict(use_grn=False, init_cfg=dict(grn="drop")))
