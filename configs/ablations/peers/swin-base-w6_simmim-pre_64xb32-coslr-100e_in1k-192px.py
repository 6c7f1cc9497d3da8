"""Fine-tuning of Swin-B after SimMIM (paper, table 4): mmpretrain's recipe at 192 px.

The paper's figure is for 224 px and windows of 7. mmpretrain would interpolate the tables of
positions for them with a function that SciPy 1.14 removed.
"""

_base_ = "_base_/transformer_in1k.py"

# knobs
pretrained = "work_dirs/simmim_swin-base-w6_32xb64-800e_in1k-192px/epoch_800.pth"
image_size = 192  # pixels
base_batch_size = 2048  # 64 GPUs x 32 images
lr = 5e-3
layer_decay_rate = 0.9

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwinTransformer",
        arch="base",
        img_size=image_size,
        drop_path_rate=0.1,
        stage_cfgs=dict(block_cfgs=dict(window_size=6)),
        init_cfg=dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(in_channels=1024),
)
train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = image_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = int(image_size / 0.875)
test_pipeline[2].crop_size = image_size
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(lr=lr),
    paramwise_cfg=dict(
        layer_decay_rate=layer_decay_rate,
        custom_keys={".relative_position_bias_table": dict(decay_mult=0.0)},
    ),
    clip_grad=dict(max_norm=5.0),
)
auto_scale_lr = dict(base_batch_size=base_batch_size)
