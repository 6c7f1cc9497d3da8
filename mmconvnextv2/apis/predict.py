"""Let a fine-tuned model look at images: classes, boxes and masks, or maps, drawn and as figures.

Shape suffixes: H and W pixels, R instances.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]
from rich.console import Console
from rich.progress import track

from mmconvnextv2.apis.machine import choose_device
from mmconvnextv2.apis.reconstruct import pick_images
from mmconvnextv2.apis.results import Predictions
from mmconvnextv2.apis.run_config import (
    build_model,
    checkpoint_of,
    config_of,
    load_config,
    read_meta,
    task_of,
)
from mmconvnextv2.checkpoint import load_strictly, read_checkpoint, to_our_names
from mmconvnextv2.datasets.image_reading import read_image
from mmconvnextv2.files import write_atomically
from mmconvnextv2.visualization.files import save_png
from mmconvnextv2.visualization.overlays import (
    CLASS_COLOURS,
    draw_caption,
    draw_instances,
    draw_semantic_map,
)

PREDICTIONS_FILE = "predictions.json"
BEST_CLASSES = 5
"""Classes of a classification that are listed, the likeliest first."""

_READING = ("LoadImageFromFile", "LoadAnnotations")
_BACKGROUND = ("0", "background")
_UNTINTED = (0, 0, 0)
_LONGEST_SIDE = 1280  # pixels of a picture: text and lines stay readable on large photographs
_COMFORTABLE_SIDE = 320  # smaller images are enlarged


class Predictor:
    """A fine-tuned classifier, detector or segmentor that takes one picture after the other.

    Args:
        checkpoint: a file of a fine-tuning run, or the folder of the run, or a URL.
        config: config file or loaded config; that of the run the checkpoint belongs to when None.
        device: "auto", "cpu", "cuda" or another device of torch.

    Attributes:
        task: "classification", "detection" or "segmentation".
        classes: names of the classes.
        palette: RGB colour of each class of a segmentation; black classes are not tinted.

    Raises:
        FileNotFoundError: checkpoint or config is not there.
        StateDictMismatch: the checkpoint is not of the config's model.
        ValueError: the checkpoint cannot be read safely, has no config or is one of pre-training,
            or there is no such device.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        config: str | os.PathLike[str] | Config | None = None,
        device: str | torch.device = "auto",
    ) -> None:
        chosen = choose_device(device)
        file = checkpoint_of(checkpoint)
        cfg = config_of(file) if config is None else load_config(config)
        self.task = task_of(cfg)
        if self.task == "pretraining":
            raise ValueError(
                f"{checkpoint} is of pre-training: reconstruct() shows what it fills in, and "
                "predict() takes what finetune() has made of it"
            )
        dataset = cfg.test_dataloader.dataset
        if any(step["type"] == "LoadRaster" for step in dataset.pipeline):
            raise ValueError(
                f"{checkpoint} reads images at their own depth, and predict() draws 8-bit pictures"
            )
        self.classes = _class_names(read_meta(file), dataset)
        self.palette = _palette(dataset, self.classes)
        steps = [s for s in dataset.pipeline if s["type"] not in _READING]
        self._model = build_model(cfg)
        with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
            self._prepare = Compose(steps)
        load_strictly(self._model, to_our_names(read_checkpoint(file)))
        self._model.to(chosen).eval()

    def find(self, image: Image.Image) -> Any:
        """Look at one picture.

        Returns:
            OpenMMLab's data sample, on the CPU: ``pred_score`` of a classification,
            ``pred_instances`` of a detection, ``pred_sem_seg`` of a segmentation.
        """
        pixels_HW3 = np.asarray(image.convert("RGB"))[..., ::-1]  # BGR, as OpenMMLab reads
        size_HW = pixels_HW3.shape[:2]
        data = dict(img=np.ascontiguousarray(pixels_HW3), img_shape=size_HW, ori_shape=size_HW)
        packed = self._prepare(dict(data, img_path="", img_id=0))
        with torch.no_grad():
            (sample,) = self._model.test_step(pseudo_collate([packed]))
        return sample.cpu()

    def draw(self, image: Image.Image, sample: Any, score: float = 0.5) -> Image.Image:
        """Draw what was found.

        Args:
            image: the picture that `find` was given.
            sample: what `find` returned.
            score: least score of an object to show, 0 to 1.
        """
        canvas, scale = _fit(image)
        if self.task == "classification":
            best = int(sample.pred_score.argmax())
            text = f"{self.classes[best]} {float(sample.pred_score[best]):.2f}"
            return draw_caption(canvas, text, scale)
        if self.task == "segmentation":
            return draw_semantic_map(
                canvas, _resize(_labels(sample), canvas.size), self.palette, scale
            )
        found = _objects(sample, score)
        texts = [
            f"{self.classes[label]} {value:.2f}"
            for label, value in zip(found["labels"], found["scores"], strict=True)
        ]
        masks = [_resize(mask_HW.astype(np.uint8), canvas.size) > 0 for mask_HW in found["masks"]]
        return draw_instances(
            canvas,
            found["bboxes"] * (canvas.width / image.width),
            np.array(masks, dtype=bool).reshape(-1, canvas.height, canvas.width),
            texts,
            found["labels"].tolist(),
            scale,
        )

    def figures(self, sample: Any, score: float = 0.5) -> dict[str, Any]:
        """What was found, as plain numbers and texts.

        Args:
            sample: what `find` returned.
            score: least score of an object, 0 to 1.

        Returns:
            Of a classification ``class``, ``score`` and ``best``, the likeliest classes with their
            scores. Of a detection ``objects``: ``class``, ``score``, ``box`` (x1, y1, x2, y2 in
            pixels of the image) and ``mask`` (COCO's run-length encoding). Of a segmentation
            ``shares``: the share of the image by class.
        """
        if self.task == "classification":
            order = sample.pred_score.argsort(descending=True)[:BEST_CLASSES].tolist()
            best = [[self.classes[i], _rounded(sample.pred_score[i])] for i in order]
            return {"class": best[0][0], "score": best[0][1], "best": best}
        if self.task == "segmentation":
            labels_HW = _labels(sample)
            counts = zip(*np.unique(labels_HW, return_counts=True), strict=True)
            shares = {self.classes[i]: _rounded(n / labels_HW.size) for i, n in counts}
            return {"shares": shares}
        found = _objects(sample, score)
        return {
            "objects": [
                {
                    "class": self.classes[label],
                    "score": _rounded(value),
                    "box": [_rounded(side, 1) for side in box],
                    "mask": _run_lengths(mask_HW),
                }
                for label, value, box, mask_HW in zip(
                    found["labels"], found["scores"], found["bboxes"], found["masks"], strict=True
                )
            ]
        }


def predict(
    images: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | Config | None = None,
    num_images: int | None = None,
    score: float = 0.5,
    device: str | torch.device = "auto",
) -> Predictions:
    """Let a fine-tuned model look at images; draws one picture an image and writes the figures.

    Args:
        images: an image, or a folder that is searched with all folders below it.
        checkpoint: a file of a fine-tuning run, or the folder of the run, whose newest is taken.
        out: folder for the pictures and ``predictions.json``; files of the same names are replaced.
        config: config of that run; found by the checkpoint when None.
        num_images: most images to look at, evenly spaced ones of a folder with more; all when None.
        score: least score of an object to show and list, 0 to 1.
        device: "auto" for a GPU where there is one, "cpu" or "cuda".

    Returns:
        Where everything is. ``predictions.json`` has the task, the classes and an entry for each
        image: see `Predictor.figures`.

    Raises:
        FileNotFoundError: images, checkpoint or config are not there.
        StateDictMismatch: the checkpoint is not of the config's model.
        TooFewImagesError: the folder has no image.
        ValueError: an image or the checkpoint cannot be read, the checkpoint is one of
            pre-training, or an argument is outside what is allowed.
    """
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    if not 0 <= score <= 1:
        raise ValueError(f"score must lie in 0 to 1, got {score}")
    paths = pick_images(Path(images), num_images)
    names = _picture_names(paths, Path(images))
    predictor = Predictor(checkpoint, config, device)
    console = Console(file=sys.stdout)
    shown = track(paths, predictor.task, console=console, disable=not console.is_terminal)
    pictures, entries = [], []
    for path, name in zip(shown, names, strict=True):
        image = Image.fromarray(read_image(path))
        sample = predictor.find(image)
        pictures.append(save_png(predictor.draw(image, sample, score), Path(out) / name))
        entries.append({"image": str(path), "picture": name, **predictor.figures(sample, score)})
    file = write_atomically(
        Path(out) / PREDICTIONS_FILE, _one_line_an_image(predictor, entries).encode()
    )
    return Predictions(predictor.task, tuple(pictures), file)


def _one_line_an_image(predictor: Predictor, entries: Sequence[Mapping[str, Any]]) -> str:
    lines = ",\n  ".join(json.dumps(entry) for entry in entries)
    classes = json.dumps(predictor.classes)
    return f'{{"task": "{predictor.task}",\n "classes": {classes},\n "images": [\n  {lines}\n]}}\n'


def _class_names(meta: Mapping[str, Any], dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes, as the run noted them in its checkpoint, or as its config has them."""
    noted = {str(key).lower(): value for key, value in (meta.get("dataset_meta") or {}).items()}
    names = noted.get("classes") or (dataset.get("metainfo") or {}).get("classes")
    if not names:
        raise ValueError(
            "neither the checkpoint nor its config names the classes: give a checkpoint as "
            "training wrote it, or a config with metainfo=dict(classes=...)"
        )
    return tuple(names)


def _palette(dataset: Mapping[str, Any], classes: Sequence[str]) -> list[tuple[int, int, int]]:
    """Colours of the classes: the config's, or the project's; a background is not tinted."""
    given = (dataset.get("metainfo") or {}).get("palette")
    if given:
        return [tuple(colour) for colour in given]
    colours = [CLASS_COLOURS[i % len(CLASS_COLOURS)] for i in range(len(classes))]
    return [
        _UNTINTED if name.lower() in _BACKGROUND else colour
        for name, colour in zip(classes, colours, strict=True)
    ]


def _picture_names(paths: Sequence[Path], root: Path) -> list[str]:
    """A name for each picture, which no two share: the image's, with its folders."""
    inside = [path.relative_to(root) if path != root else Path(path.name) for path in paths]
    short = ["_".join(path.with_suffix("").parts) for path in inside]
    twice = {name for name, count in Counter(short).items() if count > 1}
    whole = ["_".join(path.parts) for path in inside]
    return [f"{w if s in twice else s}.png" for s, w in zip(short, whole, strict=True)]


def _objects(sample: Any, score: float) -> dict[str, NDArray[Any]]:
    """Boxes, labels, scores and masks of the objects found with a score of at least `score`."""
    found = sample.pred_instances
    found = found[found.scores >= score].numpy()
    no_masks = np.zeros((len(found), *sample.ori_shape[:2]), dtype=bool)
    return dict(
        bboxes=found.bboxes,
        labels=found.labels,
        scores=found.scores,
        masks=found.get("masks", no_masks),
    )


def _labels(sample: Any) -> NDArray[np.uint8]:
    return sample.pred_sem_seg.data[0].numpy().astype(np.uint8)


def _fit(image: Image.Image) -> tuple[Image.Image, int]:
    """Shrink a large picture, and tell by what whole number to enlarge a small one."""
    longest = max(image.size)
    if longest > _LONGEST_SIDE:
        size = [max(1, round(side * _LONGEST_SIDE / longest)) for side in image.size]
        return image.resize((size[0], size[1]), Image.Resampling.LANCZOS), 1
    return image, max(1, _COMFORTABLE_SIDE // longest)


def _resize(labels_HW: NDArray[np.uint8], size_WH: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(labels_HW).resize(size_WH, Image.Resampling.NEAREST))


def _run_lengths(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return dict(size=list(encoded["size"]), counts=encoded["counts"].decode())


def _rounded(value: Any, digits: int = 4) -> float:
    return round(float(value), digits)
