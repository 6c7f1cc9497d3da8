"""Supervised training from scratch on ImageNet-1K: the recipe of each size.

The paper compares with supervised weights of 300 epochs and gives no recipe for them. Tiny to Large
have that of ConvNeXt V1; Atto to Nano are ours: the fine-tuning recipe without layer decay and head
scaling, with V1's epochs and warm-up. `base_100e` is the paper's baseline "with the same recipe":
fine-tuning of Base without layer decay, ours in what that leaves open.
"""

_base_ = "classification.py"

# knobs
batch_size_per_gpu = 64
min_lr = 1e-6
ema_momentum = 1e-4  # a decay of 0.9999, at every step

# batch counts the images of a step on all GPUs; base_lr is per 256 of them.
# fmt: off
columns = ("arch", "channels", "batch", "base_lr", "weight_decay", "drop_path",
           "mixup", "cutmix", "smoothing", "epochs")
table = dict(
    atto =("atto",   320, 1024, 2.00e-4, 0.30, 0.1, 0.0, 0.0, 0.2, 300),
    femto=("femto",  384, 1024, 2.00e-4, 0.05, 0.0, 0.3, 0.3, 0.2, 300),
    pico =("pico",   512, 1024, 2.00e-4, 0.30, 0.0, 0.3, 0.3, 0.2, 300),
    nano =("nano",   640, 1024, 2.00e-4, 0.30, 0.1, 0.5, 0.5, 0.2, 300),
    tiny =("tiny",   768, 4096, 2.50e-4, 0.05, 0.1, 0.8, 1.0, 0.1, 300),
    base =("base",  1024, 4096, 2.50e-4, 0.05, 0.5, 0.8, 1.0, 0.1, 300),
    large=("large", 1536, 4096, 2.50e-4, 0.05, 0.5, 0.8, 1.0, 0.1, 300),
    base_100e=("base", 1024, 1024, 6.25e-4, 0.05, 0.1, 0.8, 1.0, 0.1, 100),
)
# fmt: on


def recipe(row: dict) -> dict:
    """Put the values of a row where they belong in a config."""
    lr = row["base_lr"] * row["batch"] / 256
    model = dict(
        backbone=dict(arch=row["arch"], drop_path_rate=row["drop_path"]),
        head=dict(in_channels=row["channels"], loss=dict(label_smooth_val=row["smoothing"])),
    )
    if row["mixup"]:
        # Each batch gets one of the two, as in timm with a switch probability of 0.5.
        augments = [
            dict(type="Mixup", alpha=row["mixup"]),
            dict(type="CutMix", alpha=row["cutmix"]),
        ]
        model["train_cfg"] = dict(augments=augments)
    warmup_epochs = 20
    return dict(
        model=model,
        optim_wrapper=dict(optimizer=dict(lr=lr, weight_decay=row["weight_decay"])),
        param_scheduler=[
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
                eta_min=min_lr,
                by_epoch=True,
                begin=warmup_epochs,
                convert_to_iter_based=True,
            ),
        ],
        train_cfg=dict(max_epochs=row["epochs"]),
        auto_scale_lr=dict(base_batch_size=row["batch"]),
    )


recipes = {name: recipe(dict(zip(columns, row, strict=True))) for name, row in table.items()}
del columns, table  # a run prints its config: one recipe, not eight

train_dataloader = dict(batch_size=batch_size_per_gpu)

model = dict(head=dict(init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02)))

optim_wrapper = dict(
    type="AutocastOptimWrapper",
    optimizer=dict(type="AdamW", betas=(0.9, 0.999)),
    # Biases, norms, GRN and LayerScale are not decayed.
    constructor="WeightDecayOptimWrapperConstructor",
)

# Evaluated and saved are the averaged weights; a checkpoint keeps the others as ema_state_dict.
default_hooks = dict(ema=dict(type="EMAHook", momentum=ema_momentum))
