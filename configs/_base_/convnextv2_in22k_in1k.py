"""Fine-tuning on ImageNet-1K after ImageNet-22K: the recipe of each size (paper, table 13).

As `convnextv2_in1k.py`, with neither warm-up nor mixing of images. One table holds for 224 px and
for 384 and 512 px. The scheme of layer decay follows the rule of the paper's appendix A.2.
"""

_base_ = "classification.py"

# knobs
pretrained = "work_dirs/convnextv2-{size}_fcmae-pre_64xb64-coslr-90e_in22k/epoch_90.pth"
batch_size_per_gpu = 16
base_batch_size = 512  # 32 GPUs x 16 images
base_lr = 2.5e-5  # per 256 images
min_lr = 1e-6  # of the head; layer decay scales it with the rate
ema_momentum = 1e-4  # a decay of 0.9999, at every step

# fmt: off
columns = ("channels", "scheme", "decay_rate", "drop_path", "epochs", "ema")
sizes = dict(
    nano =( 640, "single", 0.90, 0.1, 90, True),
    tiny =( 768, "single", 0.90, 0.1, 90, True),
    base =(1024, "group",  0.80, 0.2, 30, True),
    large=(1536, "group",  0.80, 0.3, 30, True),
    huge =(2816, "single", 0.85, 0.5, 30, False),
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
        train_cfg=dict(max_epochs=row["epochs"]),
        default_hooks=dict(ema=dict(type="EMAHook", momentum=ema_momentum)) if row["ema"] else {},
    )


recipes = {size: recipe(size, dict(zip(columns, row, strict=True))) for size, row in sizes.items()}
del columns, sizes  # a run prints its config: one recipe, not five

# The official code's head: 0.02 times its head_init_scale of 0.001.
model = dict(head=dict(init_cfg=dict(type="TruncNormal", layer="Linear", std=2e-5)))

train_dataloader = dict(batch_size=batch_size_per_gpu)

lr = base_lr * base_batch_size / 256
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=1e-8),
    # Biases, norms and GRN are not decayed.
    constructor="LayerDecayOptimWrapperConstructor",
)
param_scheduler = [
    dict(
        type="CosineAnnealingLR",
        # A ratio, since the official code scales the minimum of each layer with its rate.
        eta_min_ratio=min_lr / lr,
        by_epoch=True,
        begin=0,
        convert_to_iter_based=True,
    ),
]

auto_scale_lr = dict(base_batch_size=base_batch_size)
