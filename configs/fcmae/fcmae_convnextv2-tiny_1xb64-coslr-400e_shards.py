"""FCMAE on tar shards of any images, on one GPU.

`tools/dataset_converters/pack_shards.py` packs them; `mmconvnextv2 pretrain` recognises them.
"""

_base_ = "fcmae_convnextv2-tiny_1xb64-coslr-400e_folder.py"

# knobs
data_root = "data/shards"

train_dataloader = dict(dataset=dict(dataset=dict(type="ShardedImages", data_root=data_root)))
