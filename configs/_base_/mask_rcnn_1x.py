"""Mask R-CNN with FPN on COCO for 12 epochs: whole images at 1333x800 px, flipped (ours).

So short a schedule does without large-scale jittering, as mmdet's own 1x recipes do. Everything
else is that of the 36 epochs.
"""

_base_ = "mask_rcnn.py"

# knobs
image_size = (1333, 800)  # pixels: longest and shortest side, whichever binds
max_epochs = 12
milestones = [8, 11]

model = dict(data_preprocessor=dict(batch_augments=None))

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(
    # Batches of landscapes or of portraits are padded less.
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(dataset=dict(pipeline=train_pipeline)),
)

train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_epochs
param_scheduler[1].milestones = milestones

# Batches differ in shape, and cuDNN would search for the fastest algorithm again and again.
env_cfg = dict(cudnn_benchmark=False)
