"""Paper, table 16c: X * N(X), without G; the paper calls it unstable."""

_base_ = "../../fcmae/fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"

model = dict(backbone=dict(response_norm=dict(type="grn", aggregation=None), mask_layout="masked"))
