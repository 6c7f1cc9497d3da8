"""UperNet on ADE20K: 160,000 iterations at 512 px (paper, appendix A.4).

A child takes one row of `sizes`. The paper gives optimizer, weight decay, batch, iterations, crop
and the scales of its test; of rate, layer decay and drop path it gives the range that was searched,
and no result for Atto to Tiny. What it leaves out is as in ConvNeXt V1's segmentation code: heads,
warm-up, schedule, kind of layer decay, mixed precision, test by a sliding window.
"""

_base_ = "default_runtime.py"

# knobs
data_root = "data/ade/ADEChallengeData2016"
num_classes = 150
crop_size = (512, 512)  # pixels, in training and of the test's window
stride = (341, 341)  # of the window
test_scale = (2048, 512)  # longest and shortest side of an image, whichever binds
test_ratios = [0.75, 0.875, 1.0, 1.125, 1.25]  # of the multi-scale test
batch_size_per_gpu = 2
num_workers = 4
max_iters = 160_000
warmup_iters = 1_500
val_interval = 16_000
lr = 1e-4  # for the batch below; the paper searched 1e-4, 2e-4 and 3e-4, the choice is ours
base_batch_size = 16  # 8 GPUs x 2 images

# What differs between sizes. decay_rate and drop_path are ours: Base, Large and Huge within the
# paper's 0.8 and 0.9, and 0.1 to 0.4. num_layers, which counts the steps of the decay, is 12 for a
# third stage of 27 blocks and 6 for shorter ones, as in ConvNeXt V1.
sizes = dict(
    atto=dict(channels=[40, 80, 160, 320], decay_rate=0.9, num_layers=6, drop_path=0.1),
    femto=dict(channels=[48, 96, 192, 384], decay_rate=0.9, num_layers=6, drop_path=0.1),
    pico=dict(channels=[64, 128, 256, 512], decay_rate=0.9, num_layers=6, drop_path=0.1),
    nano=dict(channels=[80, 160, 320, 640], decay_rate=0.9, num_layers=6, drop_path=0.1),
    tiny=dict(channels=[96, 192, 384, 768], decay_rate=0.9, num_layers=6, drop_path=0.4),
    base=dict(channels=[128, 256, 512, 1024], decay_rate=0.9, num_layers=12, drop_path=0.1),
    large=dict(channels=[192, 384, 768, 1536], decay_rate=0.9, num_layers=12, drop_path=0.3),
    huge=dict(channels=[352, 704, 1408, 2816], decay_rate=0.8, num_layers=12, drop_path=0.4),
)

default_scope = "mmseg"

norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
    ),
    backbone=dict(
        type="mmpretrain.ConvNeXtV2",
        arch="base",
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.1,
        gap_before_final_norm=False,
        with_cp=False,
        # Any checkpoint of ours or of mmpretrain's loads: pre-trained, fine-tuned, supervised.
        # Its encoder is loaded strictly; the four output norms start fresh.
        init_cfg=dict(type="Pretrained", checkpoint=None, prefix="backbone."),
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[128, 256, 512, 1024],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=512,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=stride),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=test_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
# Maps are loaded after the resizing: a prediction is judged in the image's own pixels.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=test_scale, keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
# The ratios are of the test's scale. mmseg's own pipelines take them of the image as it is, which
# in ADE20K may have 200 or 2,000 pixels. Flips and the window at all scales are ours.
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(
                    type="Resize",
                    scale=tuple(int(side * ratio) for side in test_scale),
                    keep_ratio=True,
                )
                for ratio in test_ratios
            ],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
tta_model = dict(type="SegTTAModel")

train_dataloader = dict(
    batch_size=batch_size_per_gpu,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    pin_memory=True,
    sampler=dict(type="StatelessInfiniteSampler", shuffle=True),
    dataset=dict(
        type="StatelessDataset",
        dataset=dict(
            type="ADE20KDataset",
            data_root=data_root,
            data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
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
        type="ADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="AutocastOptimWrapper",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(scheme="stage_wise", decay_rate=0.9, num_layers=12),
)

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type="PolyLR",
        power=1.0,
        eta_min=0.0,
        by_epoch=False,
        begin=warmup_iters,
        end=max_iters,
    ),
]

train_cfg = dict(type="ResumableIterLoop", max_iters=max_iters, val_interval=val_interval)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

auto_scale_lr = dict(base_batch_size=base_batch_size)

default_hooks = dict(
    logger=dict(interval=50, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=val_interval),
    visualization=dict(type="SegVisualizationHook", draw=False),
)
log_processor = dict(by_epoch=False)
visualizer = dict(type="SegLocalVisualizer")
