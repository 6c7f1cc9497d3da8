"""Paper, table 2b: N is (G - mean) / standard deviation."""

_base_ = "../../fcmae/fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"

model = dict(
    backbone=dict(response_norm=dict(type="grn", normalization="standardize"), mask_layout="masked")
)
