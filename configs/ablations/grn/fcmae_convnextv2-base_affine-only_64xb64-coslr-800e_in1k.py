"""Paper, table 16a: X, an affine scaling without G and N."""

_base_ = "../../fcmae/fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"

model = dict(
    backbone=dict(
        response_norm=dict(type="grn", aggregation=None, normalization=None),
        mask_layout="masked",
    )
)
