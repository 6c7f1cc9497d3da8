"""Paper, table 2b: N is 1 / sum of G."""

_base_ = "../../fcmae/fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"

model = dict(
    backbone=dict(response_norm=dict(type="grn", normalization="inverse_sum"), mask_layout="masked")
)
