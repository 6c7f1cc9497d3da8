"""FCMAE's rivals on the built-in sample set: its images, batch, rate and schedule, another method.

An epoch of each takes another time: for a comparison at equal wall-clock set
`train_cfg.max_epochs`.
"""

_base_ = "../../../fcmae/fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py"

mask_ratio = None  # each method's own

model = dict(
    _delete_=True,
    data_preprocessor=dict(
        type="SelfSupDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
)

# It draws FCMAE's reconstructions alone.
custom_hooks = [hook for hook in _base_.custom_hooks if hook.type != "ReconstructionHook"]
