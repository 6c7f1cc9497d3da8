"""MAE with a ViT of about Atto's size on the built-in sample set: minutes on two CPU cores.

The ViT has 3.7 million parameters, ours in width and depth; so is the narrower decoder.
"""

_base_ = "_base_/sample.py"

# knobs
mask_ratio = 0.75
patch_size = 16  # pixels
arch = dict(embed_dims=192, num_layers=8, num_heads=3, feedforward_channels=768)

model = dict(
    type="MAE",
    backbone=dict(
        type="MAEViT",
        arch=arch,
        img_size=_base_.image_size,
        patch_size=patch_size,
        mask_ratio=mask_ratio,
    ),
    neck=dict(
        type="MAEPretrainDecoder",
        num_patches=(_base_.image_size // patch_size) ** 2,
        patch_size=patch_size,
        in_chans=3,
        embed_dim=arch["embed_dims"],
        decoder_embed_dim=192,
        decoder_depth=2,
        decoder_num_heads=3,
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
