"""Paper, table 2a: G is the average over positions."""

_base_ = "../../fcmae/fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"

model = dict(backbone=dict(response_norm=dict(type="grn", aggregation="avg"), mask_layout="masked"))
