"""Linear probe of a pre-trained encoder on ImageNet-1K. The recipe is ours: the paper has none.

Everything but the output norm and the linear head is frozen. The features are averaged over
positions and normalised by that LayerNorm, so the head needs no BatchNorm, and what it learns does
not depend on the batch. The norm's own scale and shift change nothing about what can be learned:
they amount to another linear layer.
"""

_base_ = "classification.py"

# knobs
pretrained = "work_dirs/fcmae_convnextv2-base_64xb64-coslr-1600e_in1k/epoch_1600.pth"
batch_size_per_gpu = 256
base_batch_size = 1024  # 4 GPUs x 256 images
base_lr = 2.5e-4  # per 256 images
max_epochs = 90

model = dict(
    backbone=dict(
        arch="base",
        frozen_stages=4,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained),
    ),
    head=dict(
        in_channels=1024,
        loss=dict(_delete_=True, type="CrossEntropyLoss"),
        init_cfg=dict(type="TruncNormal", layer="Linear", std=0.01),
    ),
)

# Only crops and flips: a linear layer underfits, and strong augmentation costs it accuracy.
train_pipeline = [*_base_.train_pipeline[:3], dict(type="PackInputs")]
train_dataloader = dict(
    batch_size=batch_size_per_gpu, dataset=dict(dataset=dict(pipeline=train_pipeline))
)

optim_wrapper = dict(
    type="AutocastOptimWrapper",
    optimizer=dict(
        type="AdamW", lr=base_lr * base_batch_size / 256, betas=(0.9, 0.999), weight_decay=0.0
    ),
    constructor="WeightDecayOptimWrapperConstructor",  # leaves out what is frozen
)
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=True, begin=0, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs)

auto_scale_lr = dict(base_batch_size=base_batch_size)
