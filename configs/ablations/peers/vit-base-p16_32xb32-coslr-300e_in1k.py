"""ViT-B from scratch, supervised: the network that MAE fine-tunes, mmpretrain's recipe of DeiT."""

_base_ = "_base_/transformer_in1k.py"

# knobs
lr = 1e-3
max_epochs = 300
min_lr = 1e-5

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
    ),
    head=dict(init_cfg=dict(std=0.02)),
    init_cfg=[
        dict(type="TruncNormal", layer="Linear", std=0.02),
        dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
    ],
)
optim_wrapper = dict(optimizer=dict(lr=lr), clip_grad=dict(max_norm=5.0))
param_scheduler = _base_.param_scheduler
param_scheduler[1].eta_min = min_lr
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(ema=dict(type="EMAHook", momentum=4e-5))
