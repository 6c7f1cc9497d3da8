"""(d) How much to remove: a sweep of the mask ratio.

10 cells a seed, about 20 minutes of one core; 2 of them are shared with other studies.
"""

_base_ = "_cells.py"

title = "Mask ratio"
question = """
Which share of the cells should be removed? In the paper (figure 8) 0.6 is best, 0.5 to 0.7 is
nearly as good, and accuracy drops towards 0.1 and 0.9; its values are not printed. With more
removed, a step of the packed encoder is also faster: the steps are equal here, not the time.
An image has 25 cells of 32 px, of which 20, 15, 10, 4 and 2 stay: 0.8 and 0.9 remove 0.84 and 0.92.
"""

ratios = {"20": 0.2, "40": 0.4, "80": 0.8, "90": 0.9}
mask_ratio = "model.data_preprocessor.mask_ratio"
cells = {
    **{
        f"fcmae-mask-{percent}": dict(_base_.fcmae, options={mask_ratio: ratio})
        for percent, ratio in ratios.items()
    },
    **{
        f"few-fcmae-mask-{percent}": dict(
            _base_.classifier, options=_base_.few, start=f"fcmae-mask-{percent}"
        )
        for percent in ratios
    },
}

tables = [
    dict(
        name="accuracy",
        title="Accuracy by mask ratio, 20 labels a class",
        metrics={**_base_.top1, "start.computing_seconds": "computing time of pre-training (s)"},
        x="share of cells removed",
        rows=[
            dict(label="0.2", cell="few-fcmae-mask-20", x=0.2),
            dict(label="0.4", cell="few-fcmae-mask-40", x=0.4),
            dict(label="0.6", cell="few-fcmae", x=0.6),
            dict(label="0.8", cell="few-fcmae-mask-80", x=0.84),
            dict(label="0.9", cell="few-fcmae-mask-90", x=0.92),
        ],
        claims=[
            dict(says="0.6 is better than 0.2", better="0.6", than="0.2"),
            dict(says="0.6 is better than 0.9", better="0.6", than="0.9"),
        ],
    )
]
