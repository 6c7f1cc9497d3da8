"""With activation checkpointing: blocks are computed a second time instead of being remembered."""

_base_ = "fcmae_convnextv2-huge_64xb64-coslr-1600e_in1k.py"

model = dict(backbone=dict(with_cp=True))
# Gradients lie in the buckets that the processes exchange: one copy of 2.65 GB instead of two.
model_wrapper_cfg = dict(
    type="MMDistributedDataParallel", broadcast_buffers=False, gradient_as_bucket_view=True
)
