"""Intermediate fine-tuning on ImageNet-22K after FCMAE: the recipe of each size (paper, table 12).

As `convnextv2_in1k.py`, without averaged weights. The paper gives neither the number of classes,
here that of ConvNeXt V1, nor the scheme of layer decay, here the rule of its appendix A.2, nor the
resolution: ours is 224, and 384 for Huge (section 5).
"""

_base_ = "classification.py"

# knobs
data_root = "data/imagenet22k"
num_classes = 21841
pretrained = "work_dirs/fcmae_convnextv2-{size}_64xb64-coslr-1600e_in1k/epoch_1600.pth"
batch_size_per_gpu = 64
base_batch_size = 4096  # 64 GPUs x 64 images
base_lr = 2.5e-4  # per 256 images
max_epochs = 90
warmup_epochs = 5
min_lr = 1e-6  # of the head; layer decay scales it with the rate

# fmt: off
columns = ("channels", "scheme", "decay_rate", "drop_path")
sizes = dict(
    nano =( 640, "single", 0.9, 0.0),
    tiny =( 768, "single", 0.9, 0.0),
    base =(1024, "group",  0.8, 0.1),
    large=(1536, "group",  0.8, 0.1),
    huge =(2816, "single", 0.8, 0.3),
)
# fmt: on


def recipe(size: str, row: dict) -> dict:
    """Put the values of a row where they belong in a config."""
    return dict(
        model=dict(
            backbone=dict(
                arch=size,
                drop_path_rate=row["drop_path"],
                init_cfg=dict(type="Pretrained", checkpoint=pretrained.format(size=size)),
            ),
            head=dict(in_channels=row["channels"]),
        ),
        optim_wrapper=dict(
            paramwise_cfg=dict(scheme=row["scheme"], decay_rate=row["decay_rate"]),
        ),
    )


recipes = {size: recipe(size, dict(zip(columns, row, strict=True))) for size, row in sizes.items()}
del columns, sizes  # a run prints its config: one recipe, not five

model = dict(
    data_preprocessor=dict(num_classes=num_classes),
    head=dict(
        num_classes=num_classes,
        # The official code's: 0.02 times its head_init_scale of 0.001.
        init_cfg=dict(type="TruncNormal", layer="Linear", std=2e-5),
    ),
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]),
)

# A list of files, data_root/meta/train.txt, saves the scan of 14 million of them.
train_dataloader = dict(
    batch_size=batch_size_per_gpu,
    dataset=dict(dataset=dict(type="ImageNet21k", data_root=data_root)),
)
# ImageNet-22K has no validation split, so training runs without one. To test, keep images of your
# own from training, in data_root/val.
val_dataloader = None
val_evaluator = None
val_cfg = None
test_dataloader = dict(
    batch_size=batch_size_per_gpu,
    dataset=dict(
        _delete_=True,
        type="ImageNet21k",
        data_root=data_root,
        data_prefix="val",
        pipeline=_base_.test_pipeline,
    ),
)

lr = base_lr * base_batch_size / 256
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05),
    # Biases, norms and GRN are not decayed.
    constructor="LayerDecayOptimWrapperConstructor",
)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-8,
        by_epoch=True,
        begin=0,
        end=warmup_epochs,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        # A ratio, since the official code scales the minimum of each layer with its rate.
        eta_min_ratio=min_lr / lr,
        by_epoch=True,
        begin=warmup_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs)

auto_scale_lr = dict(base_batch_size=base_batch_size)
