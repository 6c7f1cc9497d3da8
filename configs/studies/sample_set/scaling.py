"""(e) Model scaling: Atto, Femto and Pico with and without FCMAE.

9 cells a seed, about 23 minutes of one core; 3 of them are shared with other studies.
"""

_base_ = "_cells.py"

title = "Model size"
question = """
Does FCMAE help at each size, and does accuracy grow with size? In the paper both hold from Atto to
Large, with 1,600 epochs of FCMAE. All sizes have the same number of steps and one rate, Atto's.
Supervised is a random start, trained with 20 labels a class.
"""

# Channels of the last stage, and how many times as long as Atto a step takes.
sizes = {"femto": (384, 1.4), "pico": (512, 2.2)}
arch = "model.backbone.arch"
pretraining = {
    f"fcmae-{size}": dict(
        _base_.fcmae,
        seconds=int(_base_.fcmae.seconds * factor),
        options={arch: size, "model.neck.in_channels": channels},
    )
    for size, (channels, factor) in sizes.items()
}
few = {
    size: dict(
        _base_.classifier,
        seconds=int(_base_.classifier.seconds * factor),
        options={**_base_.few, arch: size, "model.head.in_channels": channels},
    )
    for size, (channels, factor) in sizes.items()
}
cells = {
    **pretraining,
    **{f"few-scratch-{size}": cell for size, cell in few.items()},
    **{f"few-fcmae-{size}": dict(cell, start=f"fcmae-{size}") for size, cell in few.items()},
}

tables = [
    dict(
        name="accuracy",
        title="Accuracy by size, 20 labels a class",
        metrics=_base_.top1,
        paper="paper: ImageNet-1K top-1 (%), table 14",
        x="parameters of the encoder (millions)",
        rows=[
            dict(label="Atto, supervised", cell="few-scratch", x=3.39, paper=76.2),
            dict(label="Femto, supervised", cell="few-scratch-femto", x=4.85, paper=78.0),
            dict(label="Pico, supervised", cell="few-scratch-pico", x=8.55, paper=79.7),
            dict(label="Atto, FCMAE", cell="few-fcmae", x=3.39, paper=76.7),
            dict(label="Femto, FCMAE", cell="few-fcmae-femto", x=4.85, paper=78.5),
            dict(label="Pico, FCMAE", cell="few-fcmae-pico", x=8.55, paper=80.3),
        ],
        claims=[
            *(
                dict(
                    says=f"FCMAE helps {size}",
                    better=f"{size}, FCMAE",
                    than=f"{size}, supervised",
                )
                for size in ("Atto", "Femto", "Pico")
            ),
            dict(says="Pico is better than Atto", better="Pico, FCMAE", than="Atto, FCMAE"),
        ],
    )
]
for row in tables[0]["rows"]:
    row["series"] = row["label"].split(", ")[1]
del row
