"""UperNet on the digits of the sample set with the ViT of Atto's size, after MAE.

Four of its blocks, rescaled to strides of 4 to 32, take the place of the four stages.
"""

_base_ = "../../upernet/convnextv2-atto_upernet_1xb16-1000i_sample.py"

# knobs
pretrained = "work_dirs/mae_vit-atto-p16_1xb32-coslr-12e_sample/epoch_12.pth"
arch = dict(embed_dims=192, num_layers=8, num_heads=3, feedforward_channels=768)
decay_rate = 0.75  # of the rate, from each block to the one before it

model = dict(
    backbone=dict(
        _delete_=True,
        type="mmpretrain.VisionTransformer",
        arch=arch,
        img_size=_base_.image_size,
        patch_size=16,
        out_indices=(1, 3, 5, 7),
        out_type="featmap",
        final_norm=False,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    neck=dict(
        type="Feature2Pyramid",
        embed_dim=arch["embed_dims"],
        rescales=[4, 2, 1, 0.5],
        norm_cfg=_base_.norm_cfg,
    ),
    decode_head=dict(in_channels=[arch["embed_dims"]] * 4),
)
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(
        _delete_=True,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            "backbone": dict(lr_mult=decay_rate**9),  # patch embedding, positions
            **{f"backbone.layers.{i}.": dict(lr_mult=decay_rate ** (8 - i)) for i in range(8)},
        },
    ),
)
