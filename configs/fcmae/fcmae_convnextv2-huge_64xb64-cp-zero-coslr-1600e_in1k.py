"""For smaller cards: activation checkpointing, and AdamW's state shared among the processes."""

_base_ = "fcmae_convnextv2-huge_64xb64-cp-coslr-1600e_in1k.py"

optim_wrapper = dict(optimizer=dict(type="ShardedOptimizer", optimizer_type="AdamW"))
