"""Fine-tuning of ViT-B after BEiT (paper, table 4): mmpretrain's recipe."""

_base_ = "_base_/transformer_in1k.py"

# knobs
pretrained = "work_dirs/beit_vit-base-p16_32xb64-coslr-800e_in1k/epoch_800.pth"
lr = 4e-3
layer_decay_rate = 0.65

model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(
        _delete_=True,
        type="BEiTViT",
        arch="base",
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        out_type="avg_featmap",
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        use_shared_rel_pos_bias=False,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    head=dict(init_cfg=dict(std=0.02)),
)
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(layer_decay_rate=layer_decay_rate))
