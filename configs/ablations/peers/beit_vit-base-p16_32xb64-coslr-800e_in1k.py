"""BEiT (https://arxiv.org/abs/2106.08254) with ViT-B: mmpretrain's algorithm and recipe.

Its targets are the tokens of a DALL-E encoder, which has to be downloaded once:
https://download.openmmlab.com/mmselfsup/1.x/target_generator_ckpt/dalle_encoder.pth
"""

_base_ = "_base_/pretraining.py"

# knobs
tokenizer = "checkpoints/dalle_encoder.pth"
image_size = 224  # pixels; the tokenizer sees half of it
max_epochs = 800  # as in the paper's comparison; mmpretrain's config has 300
warmup_epochs = 10
min_lr = 1e-5
base_lr = 1.875e-4  # per 256 images
base_batch_size = 2048  # 32 GPUs x 64 images

train_pipeline = [
    dict(type="LoadImage"),
    dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomResizedCropAndInterpolationWithTwoPic",
        size=image_size,
        second_size=image_size // 2,
        interpolation="bicubic",
        second_interpolation="lanczos",
        scale=(0.08, 1.0),
    ),
    dict(
        type="BEiTMaskGenerator",
        input_size=(image_size // 16, image_size // 16),
        num_masking_patches=75,
        max_num_patches=None,
        min_num_patches=16,
    ),
    dict(type="PackInputs"),
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))

model = dict(
    type="BEiT",
    data_preprocessor=dict(
        type="TwoNormDataPreprocessor",
        second_mean=[-31.875, -31.875, -31.875],
        second_std=[318.75, 318.75, 318.75],
    ),
    backbone=dict(
        type="BEiTPretrainViT",
        arch="base",
        patch_size=16,
        drop_path_rate=0.1,
        final_norm=True,
        out_type="raw",
        layer_scale_init_value=0.1,
        init_cfg=[
            dict(type="TruncNormal", std=0.02, layer="Linear"),
            dict(type="TruncNormal", std=0.02, layer="Conv2d"),
            dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
        ],
    ),
    neck=None,
    head=dict(
        type="BEiTV1Head", embed_dims=768, num_embed=8192, loss=dict(type="CrossEntropyLoss")
    ),
    target_generator=dict(type="DALL-E", init_cfg=dict(type="Pretrained", checkpoint=tokenizer)),
)

optim_wrapper = dict(
    optimizer=dict(lr=base_lr * base_batch_size / 256, betas=(0.9, 0.999)),
    clip_grad=dict(max_norm=3.0),
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,  # LayerScale and the biases of queries and values
        custom_keys=dict(cls_token=dict(decay_mult=0.0)),
    ),
)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = warmup_epochs
param_scheduler[1].begin = warmup_epochs
param_scheduler[1].eta_min = min_lr
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=base_batch_size)
