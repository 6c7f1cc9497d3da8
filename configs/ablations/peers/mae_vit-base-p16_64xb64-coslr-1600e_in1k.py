"""MAE (https://arxiv.org/abs/2111.06377) with ViT-B: mmpretrain's algorithm and recipe.

Images, batch, optimizer and schedule are those of FCMAE, which took them from here.
"""

_base_ = "_base_/pretraining.py"

# knobs
mask_ratio = 0.75
patch_size = 16  # pixels
max_epochs = 1600

model = dict(
    type="MAE",
    backbone=dict(type="MAEViT", arch="b", patch_size=patch_size, mask_ratio=mask_ratio),
    neck=dict(
        type="MAEPretrainDecoder",
        patch_size=patch_size,
        in_chans=3,
        embed_dim=768,
        decoder_embed_dim=512,
        decoder_depth=8,
        decoder_num_heads=16,
        mlp_ratio=4.0,
    ),
    head=dict(
        type="MAEPretrainHead",
        norm_pix=True,
        patch_size=patch_size,
        loss=dict(type="PixelReconstructionLoss", criterion="L2"),
    ),
    init_cfg=[
        dict(type="Xavier", layer="Linear", distribution="uniform"),
        dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
    ],
)
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(mask_token=dict(decay_mult=0.0), cls_token=dict(decay_mult=0.0)),
    ),
)
train_cfg = dict(max_epochs=max_epochs)
