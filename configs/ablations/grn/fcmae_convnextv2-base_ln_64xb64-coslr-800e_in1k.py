"""Paper, table 2d: LayerNorm in GRN's place."""

_base_ = "../../fcmae/fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"

model = dict(backbone=dict(response_norm="ln", mask_layout="masked"))
