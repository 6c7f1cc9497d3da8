"""(h) Length of pre-training: none, the other studies' 300 steps, five times as many.

7 cells a seed, about 30 minutes of one core; 4 of them are shared with other studies.
"""

_base_ = "_cells.py"

title = "Length of pre-training"
question = """
Is FCMAE only begun after the 300 steps that all other studies give it? A random start, 300 steps
and 1,500, each with its own warm-up and decay of the rate, and the same fine-tuning behind. In the
paper the accuracy of Base grows from 84.3 % without FCMAE to 84.6 % with 800 epochs of it, and to
84.9 % with 1,600.
"""

cells = {
    "fcmae-1500": dict(_base_.fcmae, steps=1500, seconds=850),
    "few-fcmae-1500": dict(_base_.classifier, options=_base_.few, start="fcmae-1500"),
    "segmentor-fcmae-1500": dict(_base_.segmentor, start="fcmae-1500"),
}

tables = [
    dict(
        name="accuracy",
        title="Accuracy by steps of FCMAE, 20 labels a class",
        metrics=_base_.top1,
        x="steps of pre-training",
        rows=[
            dict(label="0", cell="few-scratch", x=0),
            dict(label="300", cell="few-fcmae", x=300),
            dict(label="1,500", cell="few-fcmae-1500", x=1500),
        ],
        claims=[
            dict(says="1,500 steps are better than a random start", better="1,500", than="0"),
            dict(says="1,500 steps are better than 300", better="1,500", than="300"),
        ],
    ),
    dict(
        name="segmentation",
        title="UperNet by steps of FCMAE",
        metrics={"mIoU": "mIoU (%)"},
        x="steps of pre-training",
        rows=[
            dict(label="300", cell="segmentor-fcmae", x=300),
            dict(label="1,500", cell="segmentor-fcmae-1500", x=1500),
        ],
        claims=[dict(says="1,500 steps are better than 300", better="1,500", than="300")],
    ),
]
