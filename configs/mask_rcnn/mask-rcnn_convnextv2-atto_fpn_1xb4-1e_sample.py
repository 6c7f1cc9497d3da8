"""Mask R-CNN of Atto on the digits of the built-in sample set: minutes on two CPU cores.

It starts from the digit classifier of the demo. Everything that costs time is narrowed: images of
160 px, 64 channels, few proposals. No flips: a mirrored digit is no digit.
"""

_base_ = "../_base_/mask_rcnn.py"

# knobs
data_root = "data/sample_set/detection/"
pretrained = "work_dirs/demo/classification/epoch_18.pth"
classes = tuple(f"digit_{digit}" for digit in range(10))
num_classes = len(classes)
image_size = (160, 160)  # pixels
width = 64  # channels of FPN, RPN and mask head
batch_size_per_gpu = 4
num_workers = 2
max_epochs = 1  # of 250 steps
milestones = None  # half a cosine instead of steps
warmup_iters = 50
lr = 1e-3  # for the batch below
base_batch_size = 4
decay_rate = 0.7  # the encoder knows the digits already: it moves more slowly than the heads

strides = [4, 8, 16, 32]
extractor = dict(out_channels=width, finest_scale=28)
model = dict(
    data_preprocessor=dict(batch_augments=None),
    backbone=dict(arch="atto", drop_path_rate=0.0, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=_base_.sizes.atto.channels, out_channels=width, num_outs=len(strides)),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        # Boxes of digits: 25 to 90 px across, most of them one and a half times as high as wide.
        anchor_generator=dict(scales=[6], ratios=[1.0, 1.5, 2.2], strides=strides),
    ),
    roi_head=dict(
        bbox_roi_extractor=extractor,
        bbox_head=dict(in_channels=width, fc_out_channels=256, num_classes=num_classes),
        mask_roi_extractor=extractor,
        mask_head=dict(in_channels=width, conv_out_channels=width, num_classes=num_classes),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=20)),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs"),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_size
metainfo = dict(classes=classes)
train_dataloader = dict(
    batch_size=batch_size_per_gpu,
    num_workers=num_workers,
    pin_memory=False,
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            ann_file="annotations/instances_train.json",
            data_prefix=dict(img="train/"),
            metainfo=metainfo,
            pipeline=train_pipeline,
        )
    ),
)
val_dataloader = dict(
    num_workers=num_workers,
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="val/"),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val.json")
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(lr=lr, fused=True),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(decay_rate=decay_rate),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.02, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type="CosineAnnealingLR",
        eta_min=0.0,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
auto_scale_lr = dict(base_batch_size=base_batch_size)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=max_epochs))
