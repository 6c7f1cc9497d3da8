"""For one GPU of 24 GB: half the batch and half the rate, activation checkpointing.

The number of iterations stays, so the run sees half as many images.
"""

_base_ = "convnextv2-base_upernet_8xb2-amp-160k_ade20k-512x512.py"

# knobs
batch_size = 8

model = dict(backbone=dict(with_cp=True))
train_dataloader = dict(batch_size=batch_size)
optim_wrapper = dict(optimizer=dict(lr=_base_.lr * batch_size / _base_.base_batch_size))
auto_scale_lr = dict(base_batch_size=batch_size)
