"""(b) Co-design: V1 and V2, supervised and after FCMAE, and whether the features collapse.

6 cells a seed, about 10 minutes of one core; 3 of them are shared with other studies.
"""

_base_ = "_cells.py"

title = "Co-design of architecture and pre-training"
question = """
In the paper FCMAE does not help ConvNeXt V1, whose features collapse, and helps V2, whose GRN keeps
them apart. Here the four combinations learn ten digits from 20 labels a class, and the curves show
the mean cosine distance of the channels in each block after pre-training, on held-out images.
Supervised is a random start.
"""

few_v1 = dict(_base_.classifier, options={**_base_.few, **_base_.v1})
cells = {"few-scratch-v1": few_v1, "few-fcmae-v1": dict(few_v1, start="fcmae-v1")}

tables = [
    dict(
        name="accuracy",
        title="Accuracy, 20 labels a class",
        metrics=_base_.top1,
        paper="paper: Base, ImageNet-1K top-1 (%), table 3",
        rows=[
            dict(label="V1, supervised", cell="few-scratch-v1", paper=83.8),
            dict(label="V1, FCMAE", cell="few-fcmae-v1", paper=83.7),
            dict(label="V2, supervised", cell="few-scratch", paper=84.3),
            dict(label="V2, FCMAE", cell="few-fcmae", paper=84.6),
        ],
        claims=[
            dict(says="FCMAE helps V2", better="V2, FCMAE", than="V2, supervised"),
            dict(says="FCMAE helps V1", better="V1, FCMAE", than="V1, supervised"),
            dict(says="with FCMAE, V2 is better than V1", better="V2, FCMAE", than="V1, FCMAE"),
            dict(
                says="V2 gains more from FCMAE than V1",
                better=["V2, FCMAE", "V2, supervised"],
                than=["V1, FCMAE", "V1, supervised"],
            ),
        ],
    )
]
curves = dict(
    cells={"V2, FCMAE": "fcmae", "V1, FCMAE": "fcmae-v1"},
    images="data/sample_set/detection/val",
    image_size=160,
    count=100,
    claims=[
        dict(says="V2's channels are further apart", better="V2, FCMAE", than="V1, FCMAE"),
    ],
)
