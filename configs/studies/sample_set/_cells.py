"""What the studies of the sample set train: runs of minutes on two CPU cores, three seeds each.

A cell is one run: a config of this project, its length in steps, what differs from the config, and
the cell whose encoder it starts from. Each seed has its own pre-training. Cells are shared: studies
that need the same one train it once.

`seconds` is what a cell takes on one core, about: Atto's pre-training 170, a classifier 65, a
segmentor 300, a detector 150. `tools/study.py NAME --longer 10` makes all of them ten times as
long.
"""

# knobs
labels_per_class = 20  # where labels are few
pretrain_steps = 300  # of 32 crops of 160 px
classifier_steps = 300  # of 16 images of 96 px
detector_steps = 200  # of 4 images of 160 px
segmentor_steps = 1000  # of 16 crops of 96 px

# The sample set lists its images class by class: 150 each for training, 50 for validation.
train_images = "train_dataloader.dataset.dataset.indices"
val_images = "val_dataloader.dataset.indices"
few_images = [150 * label + i for label in range(10) for i in range(labels_per_class)]

fcmae = dict(
    config="fcmae/fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py",
    steps=pretrain_steps,
    seconds=170,
)
classifier = dict(
    config="convnextv2/convnextv2-atto_fcmae-pre_1xb16-coslr-18e_sample.py",
    steps=classifier_steps,
    seconds=65,
)
detector = dict(
    config="mask_rcnn/mask-rcnn_convnextv2-atto_fpn_1xb4-1e_sample.py",
    steps=detector_steps,
    seconds=150,
)
segmentor = dict(
    config="upernet/convnextv2-atto_upernet_1xb16-1000i_sample.py",
    steps=segmentor_steps,
    seconds=300,
)

few = {train_images: few_images}
v1 = {"model.backbone.use_grn": False, "model.backbone.layer_scale_init_value": 1e-6}

top1 = {"accuracy/top1": "top-1 (%)"}

cells = {
    "fcmae": fcmae,
    "fcmae-v1": dict(fcmae, options=v1),
    "few-scratch": dict(classifier, options=few),
    "few-fcmae": dict(classifier, options=few, start="fcmae"),
    "segmentor-fcmae": dict(segmentor, start="fcmae"),
}
