_base_ = "../_base_/mask_rcnn.py"

# knobs: the weights to start from, here those of FCMAE alone; the paper compares them with
#   FCMAE + fine-tuned: "work_dirs/convnextv2-base_fcmae-pre_32xb32-coslr-100e_in1k/epoch_100.pth"
#   supervised: "work_dirs/convnextv2-base_64xb64-coslr-300e_in1k/epoch_300.pth"
pretrained = "work_dirs/fcmae_convnextv2-base_64xb64-coslr-1600e_in1k/epoch_1600.pth"

model = dict(
    backbone=dict(
        arch="base",
        drop_path_rate=_base_.sizes.base.drop_path,
        init_cfg=dict(checkpoint=pretrained),
    ),
    neck=dict(in_channels=_base_.sizes.base.channels),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=_base_.sizes.base.num_layers))
