"""Build the sample set in one go: all or nothing, the same bytes for the same seed.

The result::

    root/
      sample_set.json               what it was built with
      sources.json                  the photograph and the handwritten samples of every image
      pretrain/*.jpg                                                      no labels
      classification/{train,val}/digit_*/*.jpg                            ImageNet folders
      detection/{train,val}/*.jpg, annotations/instances_{train,val}.json   COCO instances
      segmentation/{images,annotations}/{training,validation}/*           ADE20K
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmconvnextv2.datasets.sample_set.digits import DigitSample, load_digit_samples
from mmconvnextv2.datasets.sample_set.photographs import Side, load_photographs
from mmconvnextv2.datasets.sample_set.publishing import (
    describe_differences,
    publish,
    read_parameters,
    workshop,
    write_stamp,
)
from mmconvnextv2.datasets.sample_set.scenes import Scene, compose_scene
from mmconvnextv2.datasets.sample_set.specs import (
    CLASSES,
    ClassificationSpec,
    DetectionSpec,
    PretrainSpec,
    SceneSpec,
    SegmentationSpec,
    SpecT,
    SplitSpec,
)
from mmconvnextv2.datasets.sample_set.writers import (
    Record,
    write_ade20k,
    write_coco,
    write_flat,
    write_imagenet,
)

TASKS = ("pretrain", "classification", "detection", "segmentation")
"""The parts of the sample set, in the order in which they are built."""

# Raised whenever the same parameters give other files.
_FORMAT = 1

_WRITERS = {
    "pretrain": write_flat,
    "classification": write_imagenet,
    "detection": write_coco,
    "segmentation": write_ade20k,
}
_SIDES: tuple[Side, ...] = ("train", "val")


def build_sample_set(
    root: str | Path,
    *,
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
    pretrain: PretrainSpec | None = None,
    classification: ClassificationSpec | None = None,
    detection: DetectionSpec | None = None,
    segmentation: SegmentationSpec | None = None,
    overwrite: bool = False,
) -> Path:
    """Build a small real data set from what scikit-image and scikit-learn carry, without a network.

    Handwritten digits stand on crops of photographs. No digit sample, no writer and no photograph
    of a val split is in any train split, nor in the pre-training images, whatever the seed. The set
    is built in a hidden folder beside `root` and renamed at the end, so `root` is either complete
    or untouched. Where it is already there with the same parameters, nothing is written.

    Args:
        root: Folder of the set. New, empty, or a sample set.
        seed: Seed of everything drawn, not negative. One seed gives the same bytes on one machine.
        tasks: Parts to build, out of `TASKS`.
        pretrain: Unlabelled images; None for the defaults of the class, here and below.
        classification: ImageNet folders, one digit an image.
        detection: COCO instances.
        segmentation: ADE20K.
        overwrite: Replace a sample set that was built with other parameters.

    Returns:
        `root`, absolute.

    Raises:
        TypeError: If the seed is not an integer, or a spec belongs to another task.
        ValueError: If the seed is negative, a task is unknown, digits do not fit into their image,
            `root` holds something else, or it is a set of other parameters and `overwrite` is
            False.
        NotADirectoryError: If `root` is a file.
        OSError: If the folder cannot be written.
        FileNotFoundError: If an installed package lacks a photograph.
    """
    given: dict[str, PretrainSpec | SplitSpec] = {
        "pretrain": _given_or(PretrainSpec(), pretrain),
        "classification": _given_or(ClassificationSpec(), classification),
        "detection": _given_or(DetectionSpec(), detection),
        "segmentation": _given_or(SegmentationSpec(), segmentation),
    }
    _check_seed(seed)
    specs = {task: given[task] for task in _ordered_tasks(tasks)}
    root = Path(root).expanduser().resolve()
    parameters = _parameters(seed, specs)
    found = read_parameters(root)
    if found == parameters:
        return root
    if found is not None and not overwrite:
        raise ValueError(
            f"{root} holds a sample set of other parameters "
            f"({describe_differences(found, parameters)}); "
            "pass overwrite=True or choose another folder"
        )
    with workshop(root) as work:
        fresh = work / "fresh"
        fresh.mkdir()
        _write_parts(fresh, seed, specs)
        write_stamp(fresh, parameters)
        publish(fresh, root, work / "replaced", parameters, overwrite)
    return root


def _write_parts(root: Path, seed: int, specs: dict[str, PretrainSpec | SplitSpec]) -> None:
    """Write every part and the list of sources into an existing folder."""
    samples = {side: load_digit_samples(side) for side in _SIDES}
    photographs = {side: load_photographs(side) for side in _SIDES}
    sources: dict[str, dict[str, list[Record]]] = {}
    with _progress() as progress:
        for task, spec in specs.items():
            sources[task] = {}
            for side, num_images in _splits(spec):
                key = (seed, TASKS.index(task), _SIDES.index(side))
                pool = _pool(key, task, samples[side])
                scenes = _scenes(key, num_images, spec, photographs[side], pool)
                shown = progress.track(scenes, total=num_images, description=f"{task} {side}")
                sources[task][side] = _WRITERS[task](root / task, side, shown)
    (root / "sources.json").write_text(json.dumps(sources), encoding="utf-8")


def _scenes(
    key: tuple[int, ...],
    num_images: int,
    spec: SceneSpec,
    photographs: Mapping[str, Image.Image],
    pool: Sequence[Sequence[DigitSample]],
) -> Iterator[Scene]:
    """Yield the scenes of one split; each depends on the key and its index alone.

    Scene i draws its digits from entry i of the pool, which is walked round and round.
    """
    for index in range(num_images):
        stream = np.random.SeedSequence(key, spawn_key=(index,))
        yield compose_scene(
            np.random.default_rng(stream), spec, photographs, pool[index % len(pool)]
        )


def _pool(
    key: tuple[int, ...], task: str, samples: Sequence[DigitSample]
) -> list[Sequence[DigitSample]]:
    """Return the digits that each scene may draw from.

    Any, in a scene of several. For classification one sample a scene, shuffled, in the order 0, 1,
    ..., 9, 0, 1, ...: classes are balanced, and no sample comes twice before all others came once.
    """
    if task != "classification":
        return [samples]
    by_label: list[list[DigitSample]] = [[] for _ in CLASSES]
    for position in np.random.default_rng(key).permutation(len(samples)).tolist():
        by_label[samples[position].label].append(samples[position])
    # Classes differ by a few samples; what the larger ones have more is left out.
    return [[sample] for row in zip(*by_label, strict=False) for sample in row]


def _splits(spec: PretrainSpec | SplitSpec) -> list[tuple[Side, int]]:
    """Return the sides that a spec asks for, with their numbers of images."""
    if isinstance(spec, PretrainSpec):
        return [("train", spec.num_train)]
    return [("train", spec.num_train), ("val", spec.num_val)]


def _progress() -> Progress:
    """Return a progress display that is silent where nobody watches."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _parameters(seed: int, specs: dict[str, PretrainSpec | SplitSpec]) -> dict[str, Any]:
    """Return what the files depend on, as it reads back from JSON."""
    parameters = dict(
        format=_FORMAT, seed=seed, tasks={task: asdict(spec) for task, spec in specs.items()}
    )
    return json.loads(json.dumps(parameters))


def _given_or(default: SpecT, given: SceneSpec | None) -> SpecT:
    """Return the given spec, or the default where there is none; refuse another task's."""
    if given is None:
        return default
    if not isinstance(given, type(default)):
        raise TypeError(f"expected {type(default).__name__} or None, got {given!r}")
    return given


def _ordered_tasks(tasks: Sequence[str]) -> list[str]:
    """Check the tasks and put them into the order of `TASKS`."""
    if isinstance(tasks, str):
        raise TypeError(f"tasks must be a sequence of names, got the string {tasks!r}")
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown or not tasks:
        raise ValueError(f"tasks must be one or more of {', '.join(TASKS)}, got {list(tasks)}")
    return [task for task in TASKS if task in tasks]


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
