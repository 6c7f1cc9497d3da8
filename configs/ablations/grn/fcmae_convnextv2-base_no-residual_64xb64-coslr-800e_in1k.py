"""Paper, table 2c: GRN without its residual connection."""

_base_ = "../../fcmae/fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"

model = dict(backbone=dict(response_norm=dict(type="grn", residual=False), mask_layout="masked"))
