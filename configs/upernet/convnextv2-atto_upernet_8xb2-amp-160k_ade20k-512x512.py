_base_ = "../_base_/upernet.py"

# knobs: the weights to start from, fine-tuned on ImageNet-1K after FCMAE as in the paper. It also
# compares FCMAE alone and supervised weights: put such a checkpoint here instead.
pretrained = "work_dirs/convnextv2-atto_fcmae-pre_32xb32-coslr-600e_in1k/epoch_600.pth"

size = _base_.sizes.atto
model = dict(
    backbone=dict(arch="atto", drop_path_rate=size.drop_path, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=size.channels),
    auxiliary_head=dict(in_channels=size.channels[2]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=size.decay_rate, num_layers=size.num_layers))
