"""The classifier of ten digits with the ViT of Atto's size, after MAE on the sample set."""

_base_ = "../../convnextv2/convnextv2-atto_fcmae-pre_1xb16-coslr-18e_sample.py"

# knobs
pretrained = "work_dirs/mae_vit-atto-p16_1xb32-coslr-12e_sample/epoch_12.pth"
arch = dict(embed_dims=192, num_layers=8, num_heads=3, feedforward_channels=768)

model = dict(
    backbone=dict(
        _delete_=True,
        type="VisionTransformer",
        arch=arch,
        img_size=_base_.image_size,
        patch_size=16,
        out_type="avg_featmap",
        final_norm=False,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    head=dict(in_channels=arch["embed_dims"]),
)
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(cls_token=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0)),
    ),
)
