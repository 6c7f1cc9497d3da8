"""GRN without gamma and beta; not in the paper's tables."""

_base_ = "../../fcmae/fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"

model = dict(backbone=dict(response_norm=dict(type="grn", affine=False), mask_layout="masked"))
