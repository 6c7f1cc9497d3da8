"""SparK (https://arxiv.org/abs/2301.03580) with mmpretrain's sparse ConvNeXt V2.

mmpretrain's algorithm and its recipe of Tiny, here for Base. Its GRN takes removed positions into
the norm, where they hold what the bias of the layer before gives: FCMAE's does not.
"""

_base_ = "_base_/pretraining.py"

# knobs
mask_ratio = 0.6
warmup_epochs = 20
base_lr = 1e-4  # per 256 images
base_batch_size = 4096  # 64 GPUs x 64 images
last_weight_decay = 0.2

model = dict(
    type="SparK",
    input_size=_base_.image_size,
    downsample_raito=32,
    mask_ratio=mask_ratio,
    enc_dec_norm_cfg=dict(type="SparseLN2d", eps=1e-6),
    enc_dec_norm_dim=1024,
    backbone=dict(
        type="SparseConvNeXt",
        arch="base",
        drop_path_rate=0.2,
        out_indices=(0, 1, 2, 3),
        gap_before_output=False,
        layer_scale_init_value=0.0,
        use_grn=True,
    ),
    neck=dict(
        type="SparKLightDecoder",
        feature_dim=512,
        upsample_ratio=32,
        mid_channels=0,
        last_act=False,
    ),
    head=dict(type="SparKPretrainHead", loss=dict(type="PixelReconstructionLoss", criterion="L2")),
)

optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type="Lamb",
        lr=base_lr * base_batch_size / 256,
        betas=(0.9, 0.95),
        weight_decay=0.04,
    ),
    clip_grad=dict(max_norm=5.0),
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys=dict(mask_token=dict(decay_mult=0.0)),
    ),
)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = warmup_epochs
param_scheduler[1].begin = warmup_epochs
param_scheduler.append(
    dict(
        type="CosineAnnealingWeightDecay",
        eta_min=last_weight_decay,
        by_epoch=True,
        begin=0,
        convert_to_iter_based=True,
    )
)
