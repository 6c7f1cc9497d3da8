"""(a) Where to start from: at random, from supervised training, from FCMAE.

12 cells a seed, about 34 minutes of one core; 2 of them are shared with other studies.
"""

_base_ = "_cells.py"

title = "Initialisation at equal fine-tuning budget"
question = """
Does an encoder that FCMAE has trained on unlabelled images beat one that starts at random, and one
that was trained with labels, when all are fine-tuned for the same number of steps? In
classification labels are few: 20 images of each of the digits 5 to 9, and the supervised encoder
has learned the digits 0 to 4 from 750 images. For detection and segmentation it has learned all ten
digits from 1,500 images: it knows what the task asks for, which is more than ImageNet's labels say
of COCO. There both trained encoders have the layer decay 0.7 of the sample recipes, chosen for an
encoder that knows the digits; one that starts at random has nothing to keep, and no decay.
"""

first_five = list(range(750))
last_five = [150 * label + i for label in range(5, 10) for i in range(_base_.labels_per_class)]
novel = dict(
    _base_.classifier,
    options={_base_.train_images: last_five, _base_.val_images: list(range(250, 500))},
)
supervised = dict(_base_.classifier, steps=750, seconds=165)  # as long as FCMAE
cells = {
    "supervised": supervised,
    "supervised-0to4": dict(supervised, options={_base_.train_images: first_five}),
    "novel-scratch": novel,
    "novel-supervised": dict(novel, start="supervised-0to4"),
    "novel-fcmae": dict(novel, start="fcmae"),
    "detector-scratch": _base_.detector,
    "detector-supervised": dict(_base_.detector, start="supervised"),
    "detector-fcmae": dict(_base_.detector, start="fcmae"),
    "segmentor-scratch": _base_.segmentor,
    "segmentor-supervised": dict(_base_.segmentor, start="supervised"),
}

claims = [
    dict(says="FCMAE is better than a random start", better="FCMAE", than="scratch"),
    dict(says="supervised is better than a random start", better="supervised", than="scratch"),
    dict(says="FCMAE is better than supervised", better="FCMAE", than="supervised"),
]
tables = [
    dict(
        name="classification",
        title="Classification, 20 labels a class",
        metrics=_base_.top1,
        rows=[
            dict(label="scratch", cell="novel-scratch"),
            dict(label="supervised", cell="novel-supervised"),
            dict(label="FCMAE", cell="novel-fcmae"),
        ],
        claims=claims,
    ),
    dict(
        name="detection",
        title="Mask R-CNN",
        metrics={"coco/segm_mAP": "mask AP (0 to 1)", "coco/bbox_mAP": "box AP (0 to 1)"},
        paper="paper: Base, COCO mask AP (%)",
        rows=[
            dict(label="scratch", cell="detector-scratch"),
            dict(label="supervised", cell="detector-supervised", paper=45.6),
            dict(label="FCMAE", cell="detector-fcmae", paper=46.6),
        ],
        claims=claims,
    ),
    dict(
        name="segmentation",
        title="UperNet",
        metrics={"mIoU": "mIoU (%)"},
        paper="paper: Base, ADE20K mIoU (%), both with ImageNet's labels",
        rows=[
            dict(label="scratch", cell="segmentor-scratch"),
            dict(label="supervised", cell="segmentor-supervised", paper=50.5),
            dict(label="FCMAE", cell="segmentor-fcmae", paper=52.1),
        ],
        claims=claims,
    ),
]
