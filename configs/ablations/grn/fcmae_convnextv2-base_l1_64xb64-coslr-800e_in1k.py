"""Paper, table 2a: G is the L1 norm over positions."""

_base_ = "../../fcmae/fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"

model = dict(backbone=dict(response_norm=dict(type="grn", aggregation="l1"), mask_layout="masked"))
