"""Paper, table 2f: no GRN in pre-training (V1), a fresh one in fine-tuning.

The LayerScale that V1 was pre-trained with stays; the paper does not say what it did.
"""

_base_ = "../../convnextv2/convnextv2-base_fcmae-800e-pre_32xb32-coslr-100e_in1k.py"

# knobs
pretrained = "work_dirs/fcmae_convnext-v1-base_64xb64-coslr-800e_in1k/epoch_800.pth"

model = dict(
    backbone=dict(layer_scale_init_value=1e-6, init_cfg=dict(checkpoint=pretrained, grn="add"))
)
