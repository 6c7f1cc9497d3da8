"""Fine-tuning of ViT-B after MAE (paper, table 4): mmpretrain's recipe."""

_base_ = "_base_/transformer_in1k.py"

# knobs
pretrained = "work_dirs/mae_vit-base-p16_64xb64-coslr-1600e_in1k/epoch_1600.pth"
lr = 2e-3
layer_decay_rate = 0.65
warmup_epochs = 5

model = dict(
    backbone=dict(
        _delete_=True,
        type="VisionTransformer",
        arch="base",
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        out_type="avg_featmap",
        final_norm=False,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(layer_decay_rate=layer_decay_rate))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = warmup_epochs
param_scheduler[1].begin = warmup_epochs
