"""The paper's co-design table: ConvNeXt V1, the same backbone with LayerScale and without GRN.

The decoder, which is thrown away after pre-training, stays what it is for V2.
"""

_base_ = "fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"

model = dict(backbone=dict(use_grn=False, layer_scale_init_value=1e-6))
