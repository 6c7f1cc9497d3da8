"""Pre-training by FCMAE's peers: FCMAE's images, loader, schedule and hooks around another method.

A child names mmpretrain's algorithm and its recipe, which is that of mmpretrain's own config except
where the child says otherwise. Precision is single unless `--amp` is given, as for FCMAE.
"""

_base_ = "../../../_base_/fcmae.py"

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
