"""What the project wants of its speed, and how it is read from the benchmarks' documents."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

MIN_REPEAT = 5
"""Rounds below which a median says too little to judge by."""

Document = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """One comparison and its limit.

    Attributes:
        text: what is compared, for people.
        benchmark: whose documents tell.
        group: pattern of the comparison's name in it.
        subject: name of the alternative that is judged.
        against: patterns of those it is compared with; the best of them counts.
        quantity: a name of `QUANTITIES`.
        at_least: the limit where more is better.
        at_most: the limit where less is better.
        where: arguments that a document must have; "device" stands for its type.
    """

    text: str
    benchmark: str
    group: str
    subject: str
    against: tuple[str, ...]
    quantity: str
    at_least: float | None = None
    at_most: float | None = None
    where: Mapping[str, Any] = field(default_factory=dict)

    @property
    def limit(self) -> str:
        """The limit, for people."""
        return (
            f">= {self.at_least:.2f}x" if self.at_least is not None else f"<= {self.at_most:.2f}x"
        )

    def is_met(self, value: float) -> bool:
        """Whether a measured ratio reaches the limit."""
        if self.at_least is not None:
            return value >= self.at_least
        assert self.at_most is not None
        return value <= self.at_most


@dataclass(frozen=True)
class Finding:
    """What the documents say about a target.

    Attributes:
        target: the target.
        value: the measured ratio.
        against: the alternative that the subject was compared with.
        document: where it was measured.
    """

    target: Target
    value: float
    against: str
    document: Document


def _seconds(row: Row) -> float | None:
    return row["seconds"]["median"] / row["images"]


def _activations(row: Row) -> float | None:
    return None if row["memory"] is None else row["memory"]["activations"] / row["images"]


def _floor(row: Row) -> float | None:
    return None if row["floor_seconds"] is None else row["floor_seconds"]["median"] / row["images"]


QUANTITIES: dict[str, tuple[Callable[[Row], float | None], Callable[[Row], float | None], bool]] = {
    "times as fast": (_seconds, _seconds, True),
    "share of its time": (_seconds, _seconds, False),
    "share of its activation memory": (_activations, _activations, False),
    "time over its own matrix products": (_seconds, _floor, False),
}
"""By name: what is read of the subject, what of the others, if other / subject is meant."""


def evaluate(targets: Iterable[Target], documents: Iterable[Document]) -> list[Finding | Target]:
    """Look every target up; one that was not measured comes back as it is.

    Args:
        targets: what to look up.
        documents: results of benchmarks; of several that fit a target the latest counts.
    """
    latest = sorted(documents, key=lambda document: document["date"], reverse=True)
    return [_evaluate(target, latest) for target in targets]


def _evaluate(target: Target, documents: Iterable[Document]) -> Finding | Target:
    of_subject, of_others, inverse = QUANTITIES[target.quantity]
    for document in documents:
        if not _fits(target, document):
            continue
        rows = [row for row in document["rows"] if fnmatch(row["group"], target.group)]
        subjects = [row for row in rows if row["name"] == target.subject]
        others = [
            (value, row["name"])
            for row in rows
            for pattern in target.against
            if fnmatch(row["name"], pattern) and (value := of_others(row)) is not None
        ]
        values = [value for row in subjects if (value := of_subject(row)) is not None]
        if values and others:
            best, name = min(others)
            subject = statistics.median(values)
            ratio = best / subject if inverse else subject / best
            return Finding(target, ratio, name, document)
    return target


def _fits(target: Target, document: Document) -> bool:
    arguments = dict(document["arguments"])
    arguments["device"] = str(arguments["device"]).partition(":")[0]
    if arguments["repeat"] < MIN_REPEAT:
        return False
    return document["benchmark"] == target.benchmark and all(
        arguments.get(name) == value for name, value in target.where.items()
    )


_CPU = dict(device="cpu", dtype="fp32", image_size=224)
_GPU = dict(device="cuda", dtype="bf16", image_size=224, batch=128)
_SIZES = {"tiny": 8, "base": 4, "atto": 8}
_MAE = ("MAE ViT-B/16 *",)
_DENSE = ("timm, dense*", "transformers, dense*", "mmpretrain, dense*")
_EAGER = tuple(
    f"{name}, dense{suffix}"
    for name in ("timm", "transformers", "mmpretrain")
    for suffix in ("", ", channels last")
)


def _encoder(
    text: str,
    against: tuple[str, ...],
    quantity: str,
    sizes: Iterable[tuple[str, float]],
    at_least: bool = True,
) -> list[Target]:
    """Targets of the packed encoder on a CPU, one a size."""
    return [
        Target(
            f"{text}, encoder, {arch}, batch {_SIZES[arch]}",
            "pretrain_step",
            "encoder",
            "packed",
            against,
            quantity,
            at_least=limit if at_least else None,
            at_most=None if at_least else limit,
            where=dict(_CPU, arch=arch, batch=_SIZES[arch]),
        )
        for arch, limit in sizes
    ]


TARGETS: tuple[Target, ...] = (
    *_encoder(
        "packed vs masked",
        ("masked",),
        "times as fast",
        [("tiny", 3.2), ("base", 3.0), ("atto", 2.8)],
    ),
    *_encoder(
        "packed vs the fastest dense encoder of timm, transformers, mmpretrain, eager",
        _EAGER,
        "times as fast",
        [("tiny", 3.2), ("base", 3.0)],
    ),
    *_encoder(
        "packed vs a masked layout with the same kernels",
        ("packed, nothing removed",),
        "times as fast",
        [("tiny", 2.4)],
    ),
    Target(
        "FCMAE Base vs MAE ViT-B/16, full step, batch 8",
        "pretrain_step",
        "step",
        "packed",
        _MAE,
        "share of its time",
        at_most=0.70,
        where=dict(_CPU, arch="base", batch=8),
    ),
    *_encoder(
        "packed vs minkowski", ("minkowski",), "times as fast", [("atto", 6.0), ("tiny", 6.0)]
    ),
    *_encoder(
        "packed vs its own matrix products alone",
        ("packed",),
        "time over its own matrix products",
        [("tiny", 1.4), ("base", 1.4)],
        at_least=False,
    ),
    *_encoder(
        "packed vs masked",
        ("masked",),
        "share of its activation memory",
        [("tiny", 0.40), ("base", 0.40), ("atto", 0.40)],
        at_least=False,
    ),
    *(
        Target(
            f"dense forward + backward vs the fastest of timm, transformers, mmpretrain, "
            f"eager or compiled, {arch}",
            "dense",
            "forward + backward, * 224x224",
            "ConvNeXtV2",
            _DENSE,
            "times as fast",
            at_least=1.10 if arch == "tiny" else 1.0,
            where=dict(_CPU, arch=arch, compile=True),
        )
        for arch in ("tiny", "base", "atto")
    ),
    Target(
        "pre-training data path vs mmpretrain's default, per core",
        "dataload",
        "*",
        "ours",
        ("mmpretrain's default",),
        "times as fast",
        at_least=1.5,
    ),
    *(
        Target(
            f"packed vs masked, encoder, {arch}, batch 128, GPU",
            "pretrain_step",
            "encoder",
            "packed",
            ("masked",),
            quantity,
            at_least=2.3 if quantity == "times as fast" else None,
            at_most=None if quantity == "times as fast" else 0.40,
            where=dict(_GPU, arch=arch),
        )
        for arch in ("tiny", "base", "large")
        for quantity in ("times as fast", "share of its activation memory")
    ),
    Target(
        "FCMAE Base vs MAE ViT-B/16, full step, GPU",
        "pretrain_step",
        "step",
        "packed",
        _MAE,
        "share of its time",
        at_most=1.0,
        where=dict(_GPU, arch="base"),
    ),
)
"""The speed that the project aims at; see docs/benchmarks.md for what was reached."""
