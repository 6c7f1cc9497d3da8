"""Paper, table 2a: G is the L1 norm over positions. Fine-tuning."""

_base_ = "../../convnextv2/convnextv2-base_fcmae-800e-pre_32xb32-coslr-100e_in1k.py"

# knobs
pretrained = "work_dirs/fcmae_convnextv2-base_l1_64xb64-coslr-800e_in1k/epoch_800.pth"

model = dict(
    backbone=dict(
        response_norm=dict(type="grn", aggregation="l1"),
        init_cfg=dict(checkpoint=pretrained),
    )
)
