"""Mask R-CNN with FPN on COCO: large-scale jittering at 1024 px, 36 epochs (paper, appendix A.3).

A child takes one row of `sizes`. The paper gives schedule, batch, rate, weight decay, jittering and
soft-NMS; of layer decay and drop path it gives the range that was searched, and no result for Atto
to Tiny. "mmdet's project" is the public reproduction of Base in mmdet's projects/ConvNeXt-V2.
The knobs are used where they are written: `--cfg-options` sets the keys that are built from them,
such as `train_cfg.max_epochs`.
"""

_base_ = "default_runtime.py"

# knobs
data_root = "data/coco/"
classes = None  # a tuple of names; None: the 80 of COCO
num_classes = 80
image_size = (1024, 1024)  # pixels, of the training crops
batch_size_per_gpu = 4
num_workers = 4
max_epochs = 36
milestones = [27, 33]
warmup_iters = 1000  # mmdet's project
lr = 1e-4  # the paper's, for the batch below
base_batch_size = 32  # 8 GPUs x 4 images
decay_rate = 0.95  # of the rate, from layer to layer; the paper searched 0.9 and 0.95

# What differs between sizes. drop_path: Base as in mmdet's project, Large and Huge ours within the
# paper's range of 0.2 to 0.5, Atto to Tiny ours. num_layers: 12 for a third stage of 27 blocks and
# 6 for shorter ones, as in ConvNeXt V1.
sizes = dict(
    atto=dict(channels=[40, 80, 160, 320], drop_path=0.1, num_layers=6),
    femto=dict(channels=[48, 96, 192, 384], drop_path=0.1, num_layers=6),
    pico=dict(channels=[64, 128, 256, 512], drop_path=0.1, num_layers=6),
    nano=dict(channels=[80, 160, 320, 640], drop_path=0.1, num_layers=6),
    tiny=dict(channels=[96, 192, 384, 768], drop_path=0.4, num_layers=6),
    base=dict(channels=[128, 256, 512, 1024], drop_path=0.4, num_layers=12),
    large=dict(channels=[192, 384, 768, 1536], drop_path=0.4, num_layers=12),
    huge=dict(channels=[352, 704, 1408, 2816], drop_path=0.5, num_layers=12),
)

default_scope = "mmdet"

custom_imports = dict(
    imports=[
        *_base_.custom_imports.imports,
        "mmconvnextv2.models.full_precision",
        "mmconvnextv2.engine.coco_metric",
    ],
    allow_failed_imports=False,
)

roi_strides = [4, 8, 16, 32]

model = dict(
    type="MaskRCNN",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=32,
        # Small crops are padded to the full size as well, as large-scale jittering has it.
        batch_augments=[dict(type="BatchFixedSizePad", size=image_size, pad_mask=True)],
    ),
    backbone=dict(
        type="mmpretrain.ConvNeXtV2",
        arch="tiny",
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.4,
        gap_before_final_norm=False,
        with_cp=False,
        # Any checkpoint of ours or of mmpretrain's loads: pre-trained, fine-tuned, supervised.
        # Its encoder is loaded strictly; the four output norms start fresh.
        init_cfg=dict(type="Pretrained", checkpoint=None, prefix="backbone."),
    ),
    neck=dict(type="FPN", in_channels=[96, 192, 384, 768], out_channels=256, num_outs=5),
    rpn_head=dict(
        type="mmpretrain.FullPrecisionRPNHead",
        in_channels=256,
        feat_channels=256,
        anchor_generator=dict(
            type="AnchorGenerator",
            scales=[8],
            ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64],
        ),
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0, 1.0, 1.0, 1.0]
        ),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="mmpretrain.FullPrecisionRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides=roi_strides,
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=256,
            fc_out_channels=1024,
            roi_feat_size=7,
            num_classes=num_classes,
            bbox_coder=dict(
                type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]
            ),
            reg_class_agnostic=False,
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        mask_roi_extractor=dict(
            type="mmpretrain.FullPrecisionRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=roi_strides,
        ),
        mask_head=dict(
            type="FCNMaskHead",
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=num_classes,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
                min_pos_iou=0.3,
                match_low_quality=True,
                ignore_iof_thr=-1,
            ),
            sampler=dict(
                type="RandomSampler",
                num=256,
                pos_fraction=0.5,
                neg_pos_ub=-1,
                add_gt_as_proposals=False,
            ),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(
            nms_pre=2000,
            max_per_img=1000,
            nms=dict(type="nms", iou_threshold=0.7),
            min_bbox_size=0,
        ),
        rcnn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=True,
                ignore_iof_thr=-1,
            ),
            sampler=dict(
                type="RandomSampler",
                num=512,
                pos_fraction=0.25,
                neg_pos_ub=-1,
                add_gt_as_proposals=True,
            ),
            mask_size=28,
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(
            nms_pre=1000,
            max_per_img=1000,
            nms=dict(type="nms", iou_threshold=0.7),
            min_bbox_size=0,
        ),
        rcnn=dict(
            score_thr=0.05,
            # The paper says soft-NMS and no more; here as in mmdet's project, not in the RPN.
            nms=dict(type="soft_nms", iou_threshold=0.5),
            max_per_img=100,
            mask_thr_binary=0.5,
        ),
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type="RandomCrop",
        crop_type="absolute_range",
        crop_size=image_size,
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]

metainfo = dict() if classes is None else dict(classes=classes)
train_ann = "annotations/instances_train2017.json"
val_ann = "annotations/instances_val2017.json"

train_dataloader = dict(
    batch_size=batch_size_per_gpu,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    pin_memory=True,
    sampler=dict(type="StatelessSampler", shuffle=True),
    dataset=dict(
        type="StatelessDataset",
        dataset=dict(
            type="CocoDataset",
            data_root=data_root,
            ann_file=train_ann,
            data_prefix=dict(img="train2017/"),
            metainfo=metainfo,
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoDataset",
        data_root=data_root,
        ann_file=val_ann,
        data_prefix=dict(img="val2017/"),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type="EmptySafeCocoMetric", ann_file=data_root + val_ann, metric=["bbox", "segm"]
)
test_evaluator = val_evaluator

# The paper does not say whether it used mixed precision; mmdet's project did.
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(scheme="layer_wise", decay_rate=decay_rate, num_layers=6),
)

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type="MultiStepLR",
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=milestones,
        gamma=0.1,
    ),
]

train_cfg = dict(type="ResumableEpochLoop", max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

auto_scale_lr = dict(base_batch_size=base_batch_size)

default_hooks = dict(
    checkpoint=dict(interval=1), visualization=dict(type="DetVisualizationHook", draw=False)
)
visualizer = dict(type="DetLocalVisualizer")
