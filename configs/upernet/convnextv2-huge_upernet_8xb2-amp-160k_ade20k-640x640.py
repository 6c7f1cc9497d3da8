"""The paper's best result: 640 px, from weights that were fine-tuned on ImageNet-22K.

Weights of that stage alone were never published; those of the official release were fine-tuned on
ImageNet-1K afterwards, at 384 or 512 px. Either kind loads.
"""

_base_ = "convnextv2-huge_upernet_8xb2-amp-160k_ade20k-512x512.py"

# knobs
pretrained = "work_dirs/convnextv2-huge_fcmae-pre_64xb64-coslr-90e_in22k-384px/epoch_90.pth"
crop_size = (640, 640)
stride = (426, 426)
test_scale = (2560, 640)

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(init_cfg=dict(checkpoint=pretrained)),
    test_cfg=dict(crop_size=crop_size, stride=stride),
)

train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = test_scale
train_pipeline[3].crop_size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = test_scale
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type="Resize", scale=tuple(int(side * ratio) for side in test_scale), keep_ratio=True)
    for ratio in _base_.test_ratios
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
