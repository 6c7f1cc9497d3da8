"""(g) Pre-training data: a quarter, half and all of the images, for the same number of steps.

6 cells a seed, about 12 minutes of one core; 2 of them are shared with other studies.
"""

_base_ = "_cells.py"

title = "Amount of pre-training data"
question = """
Does FCMAE need all the images? A quarter (250), half (500) and all (1,000) are seen for the same
number of steps: fewer images come more often.
"""

counts = [250, 500]
cells = {
    **{
        f"fcmae-{count}": dict(_base_.fcmae, options={_base_.train_images: count})
        for count in counts
    },
    **{
        f"few-fcmae-{count}": dict(_base_.classifier, options=_base_.few, start=f"fcmae-{count}")
        for count in counts
    },
}

tables = [
    dict(
        name="accuracy",
        title="Accuracy by number of images, 20 labels a class",
        metrics=_base_.top1,
        x="images in pre-training",
        rows=[
            dict(label="250", cell="few-fcmae-250", x=250),
            dict(label="500", cell="few-fcmae-500", x=500),
            dict(label="1,000", cell="few-fcmae", x=1000),
        ],
        claims=[
            dict(says="all images are better than a quarter", better="1,000", than="250"),
            dict(says="all images are better than half", better="1,000", than="500"),
        ],
    )
]
