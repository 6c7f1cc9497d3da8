"""The paper's co-design table: ConvNeXt V1, which is the same backbone with LayerScale, not GRN."""

_base_ = "convnextv2-large_fcmae-pre_32xb32-coslr-100e_in1k.py"

# knobs
pretrained = "work_dirs/fcmae_convnext-v1-large_64xb64-coslr-800e_in1k/epoch_800.pth"

model = dict(
    backbone=dict(
        use_grn=False,
        layer_scale_init_value=1e-6,
        init_cfg=dict(checkpoint=pretrained),
    )
)
