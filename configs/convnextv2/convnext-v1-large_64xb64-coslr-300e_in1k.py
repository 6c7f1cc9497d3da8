"""The paper's co-design table: ConvNeXt V1, which is the same backbone with LayerScale, not GRN."""

_base_ = "convnextv2-large_64xb64-coslr-300e_in1k.py"

model = dict(backbone=dict(use_grn=False, layer_scale_init_value=1e-6))
