"""MAE (https://arxiv.org/abs/2111.06377) for a ViT of any size: mmpretrain's, in parts."""

# knobs
mae_mask_ratio = 0.75
patch_size = 16  # pixels

mae_model = dict(
    type="MAE",
    backbone=dict(type="MAEViT", patch_size=patch_size, mask_ratio=mae_mask_ratio),
    neck=dict(type="MAEPretrainDecoder", patch_size=patch_size, in_chans=3, mlp_ratio=4.0),
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
mae_optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(mask_token=dict(decay_mult=0.0), cls_token=dict(decay_mult=0.0)),
    ),
)
