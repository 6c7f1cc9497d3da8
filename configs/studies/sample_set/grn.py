"""(c) GRN in pre-training, in fine-tuning, in both, in neither.

6 cells a seed, about 10 minutes of one core; 2 of them are shared with other studies.
"""

_base_ = "_cells.py"

title = "GRN on and off"
question = """
Is GRN needed in pre-training, in fine-tuning, or in both? Without it nothing takes its place: these
encoders have no LayerScale either. What is added for fine-tuning starts fresh, as the identity. The
paper's figure without GRN is V1's.
"""

off = {"model.backbone.use_grn": False}
cells = {
    "fcmae-no-grn": dict(_base_.fcmae, options=off),
    "few-fcmae-no-grn": dict(
        _base_.classifier, options={**_base_.few, **off}, start="fcmae-no-grn"
    ),
    "few-fcmae-drop-grn": dict(
        _base_.classifier,
        options={**_base_.few, **off, "model.backbone.init_cfg.grn": "drop"},
        start="fcmae",
    ),
    "few-fcmae-add-grn": dict(
        _base_.classifier,
        options={**_base_.few, "model.backbone.init_cfg.grn": "add"},
        start="fcmae-no-grn",
    ),
}

tables = [
    dict(
        name="accuracy",
        title="Accuracy, 20 labels a class",
        metrics=_base_.top1,
        paper="paper: Base, ImageNet-1K top-1 (%), table 2f",
        rows=[
            dict(label="neither", cell="few-fcmae-no-grn", paper=83.7),
            dict(label="pre-training only", cell="few-fcmae-drop-grn", paper=78.8),
            dict(label="fine-tuning only", cell="few-fcmae-add-grn", paper=80.6),
            dict(label="both", cell="few-fcmae", paper=84.6),
        ],
        claims=[
            dict(says="GRN in both is better than in neither", better="both", than="neither"),
            dict(
                says="GRN in both is better than in pre-training only",
                better="both",
                than="pre-training only",
            ),
            dict(
                says="GRN in both is better than in fine-tuning only",
                better="both",
                than="fine-tuning only",
            ),
        ],
    )
]
