"""(f) FCMAE beside MAE, SimMIM and MoCo v3, pre-trained for the same time on the same images.

14 cells a seed, about 38 minutes of one core; 4 of them are shared with other studies.
"""

_base_ = "_cells.py"

# knobs: as many steps as take the time of FCMAE's 300, by the processor time of a step on one
# thread (0.56 s; MAE 0.53, SimMIM 0.87, MoCo v3 2.30), loaders not included. The tables have what
# they took in the study; on a GPU the numbers differ, and have to be measured anew.
steps = {"mae": 320, "simmim": 195, "moco-v3": 74}

title = "FCMAE and its rivals at equal time"
question = """
Four ways to use the unlabelled images, each for about the same computing time, then the same
fine-tuning. SimMIM and MoCo v3 train ConvNeXt V2 Atto, MAE a ViT of Atto's size; in classification
both stand beside random starts. MoCo v3 is made for batches of thousands of images and has 32 here,
without a sweep of its rate: its row says what it does on such a budget, and no more. The paper's
MAE is of ViT-B; its SimMIM is of Swin, and so is not shown.
"""

peers = "ablations/peers"
pretraining_configs = {
    "mae": f"{peers}/mae_vit-atto-p16_1xb32-coslr-12e_sample.py",
    "simmim": f"{peers}/simmim_convnextv2-atto_1xb32-coslr-12e_sample.py",
    "moco-v3": f"{peers}/moco-v3_convnextv2-atto_1xb32-coslr-12e_sample.py",
}
# Both start from any encoder of theirs.
classifiers = {
    "mae": f"{peers}/vit-atto-p16_mae-pre_1xb16-coslr-18e_sample.py",
    "simmim": _base_.classifier.config,
    "moco-v3": _base_.classifier.config,
}
segmentors = {
    "mae": f"{peers}/vit-atto-p16_upernet_1xb16-1000i_sample.py",
    "simmim": _base_.segmentor.config,
    "moco-v3": _base_.segmentor.config,
}
cells = {
    **{
        name: dict(_base_.fcmae, config=config, steps=steps[name])
        for name, config in pretraining_configs.items()
    },
    **{
        f"few-{name}": dict(_base_.classifier, config=config, options=_base_.few, start=name)
        for name, config in classifiers.items()
    },
    "few-scratch-vit": dict(_base_.classifier, config=classifiers["mae"], options=_base_.few),
    **{
        f"segmentor-{name}": dict(_base_.segmentor, config=config, start=name)
        for name, config in segmentors.items()
    },
}

labels = {"moco-v3": "MoCo v3", "mae": "MAE (ViT)", "simmim": "SimMIM", "fcmae": "FCMAE"}
claims = [
    dict(says=f"FCMAE is better than {label}", better="FCMAE", than=label)
    for label in labels.values()
    if label != "FCMAE"
]
seconds = {"start.computing_seconds": "computing time of pre-training (s)"}
tables = [
    dict(
        name="classification",
        title="Classification, 20 labels a class",
        metrics={**_base_.top1, **seconds},
        paper="paper: Base, ImageNet-1K top-1 (%)",
        rows=[
            dict(label="random start", cell="few-scratch"),
            dict(label="random start (ViT)", cell="few-scratch-vit"),
            dict(label=labels["moco-v3"], cell="few-moco-v3", paper=83.7),
            dict(label=labels["mae"], cell="few-mae", paper=83.6),
            dict(label=labels["simmim"], cell="few-simmim"),
            dict(label=labels["fcmae"], cell="few-fcmae", paper=84.9),
        ],
        claims=claims,
    ),
    dict(
        name="segmentation",
        title="UperNet",
        metrics={"mIoU": "mIoU (%)", **seconds},
        rows=[dict(label=label, cell=f"segmentor-{name}") for name, label in labels.items()],
        claims=claims,
    ),
]
