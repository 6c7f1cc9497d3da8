"""What a report says of a run in words: headline, settings, hardware and versions."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config

from mmconvnextv2.apis.run_record import RunRecord, innermost_dataset, training_crop
from mmconvnextv2.apis.software import package_version, software
from mmconvnextv2.visualization.charts import format_number

_KICKERS = {
    "pretraining": "Pre-training report",
    "classification": "Classification report",
    "detection": "Detection report",
    "segmentation": "Segmentation report",
    "training": "Training report",
}
# A hyphen at which no line breaks.
_METHODS = {"MaskRCNN": "Mask R\u2011CNN", "ImageClassifier": "classifier", "UPerHead": "UperNet"}
_LOGGED_PACKAGES = {
    "Python": "Python",
    "torch": "PyTorch",
    "torchvision": "TorchVision",
    "OpenCV": "OpenCV",
    "MMEngine": "MMEngine",
}
"""Names of a report, and of mmengine's log."""

Row = tuple[str, str]


def headline(record: RunRecord) -> tuple[str, str]:
    """What kind of report it is, and its title."""
    model = record.config.get("model") or {}
    # A line of the title breaks after the dot, if it has to.
    encoder = f"{_encoder_name(model)} ·".replace(" ", "\u00a0")
    return _KICKERS[record.task], f"{encoder} {_method_name(model)}"


def describe_run(record: RunRecord) -> str:
    """Where the run is and when it was."""
    parts = [str(record.folder)]
    if record.started is not None:
        parts.append(f"started {record.started.day} {record.started:%B %Y, %H:%M}")
    if record.checkpoint is not None:
        parts.append(f"newest checkpoint {record.checkpoint.name}")
    return " · ".join(parts)


def settings_facts(record: RunRecord) -> list[Row]:
    """The settings that matter most, as far as the config has them."""
    cfg = record.config
    model = cfg.get("model") or {}
    backbone = model.get("backbone") or {}
    data = innermost_dataset(cfg, "train_dataloader")
    classes = (data.get("metainfo") or {}).get("classes") or ()
    more = ", …" if len(classes) > 4 else ""
    sizes = count_parameters(record)
    preprocessor = model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    ratio = preprocessor.get("mask_ratio")
    facts = [
        ("Model", _method_name(model)),
        ("Encoder", _encoder_name(model)),
        ("Starts from", _initial_weights(cfg, backbone)),
        ("Parameters", sizes and f"encoder {short_count(sizes[0])}, rest {short_count(sizes[1])}"),
        ("Masked", None if ratio is None else f"{100 * ratio:g} % of the cells"),
        ("Layout", backbone.get("mask_layout")),
        ("Drop path", backbone.get("drop_path_rate") or None),
        ("Images", data.get("data_root")),
        ("Classes", f"{len(classes)}: {', '.join(classes[:4])}{more}" if classes else None),
        ("Image size", _size_text(cfg)),
        ("Images a step", images_per_step(record)[0]),
        ("Length", _length(cfg)),
        *_optimization(cfg),
        ("Seed", (cfg.get("randomness") or {}).get("seed")),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def environment_rows(record: RunRecord) -> list[tuple[str, str, str]]:
    """Table of software and hardware: what the log recorded, and what is here now."""
    logged = record.environment
    gpus = [value for name, value in logged.items() if re.fullmatch(r"GPU [\d,]+", name)]
    no_gpu = "none" if logged.get("CUDA available") == "False" else ""
    now = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": package_version("torchvision"),
        "OpenCV": package_version("opencv-python-headless", "opencv-python"),
        "MMEngine": package_version("onedl-mmengine", "mmengine"),
    }
    rows = [
        (name, logged.get(logged_name, "").split(" (")[0], now[name])
        for name, logged_name in _LOGGED_PACKAGES.items()
    ]
    rows += [(name, logged.get(name, ""), here) for name, here in software().items()]
    processes = logged.get("GPU number", "")
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows += [
        ("GPU", ", ".join(gpus) or no_gpu, here),
        ("Processes", processes, ""),
        ("Cores", "", str(os.cpu_count())),
        ("System", logged.get("sys.platform", ""), f"{platform.system()} {platform.machine()}"),
    ]
    return [
        ("", "recorded by the run", "when this page was written"),
        *((name, then or "–", today or "–") for name, then, today in rows),
    ]


def images_per_step(record: RunRecord) -> tuple[str, int]:
    """How the images of one iteration come together, and their number."""
    cfg = record.config
    batch = (cfg.get("train_dataloader") or {}).get("batch_size") or 1
    processes = int(record.environment.get("GPU number", "1"))
    accumulated = (cfg.get("optim_wrapper") or {}).get("accumulative_counts") or 1
    parts = [
        f"{batch}",
        *([f"{processes} processes"] if processes > 1 else []),
        *([f"{accumulated} accumulated"] if accumulated > 1 else []),
    ]
    total = batch * processes * accumulated
    text = " × ".join(parts) + (f" = {total}" if len(parts) > 1 else "")
    return text, batch * processes


def _encoder_name(model: Mapping[str, Any]) -> str:
    backbone = model.get("backbone") or {}
    kind = str(backbone.get("type", "model")).split(".")[-1]
    arch = backbone.get("arch")
    name = "ConvNeXt V2" if kind == "ConvNeXtV2" else kind
    return f"{name} {arch.capitalize()}" if isinstance(arch, str) else name


def _method_name(model: Mapping[str, Any]) -> str:
    kind = str(model.get("type", "model")).split(".")[-1]
    if kind == "EncoderDecoder":
        kind = str((model.get("decode_head") or {}).get("type", kind))
    return _METHODS.get(kind, kind)


def _initial_weights(cfg: Config, backbone: Mapping[str, Any]) -> str:
    init = backbone.get("init_cfg")
    checkpoint = init.get("checkpoint") if isinstance(init, Mapping) else None
    return str(checkpoint or cfg.get("load_from") or "random weights")


def count_parameters(record: RunRecord) -> tuple[int, int] | None:
    """Numbers of parameters, by the checkpoint: of the encoder and of the rest."""
    if record.checkpoint is None:
        return None
    content = torch.load(record.checkpoint, map_location="cpu", weights_only=True, mmap=True)
    sizes = {name: value.numel() for name, value in content["state_dict"].items()}
    encoder = sum(size for name, size in sizes.items() if name.startswith("backbone."))
    return encoder, sum(sizes.values()) - encoder


def short_count(number: int) -> str:
    """A number of parameters, in millions where it is large."""
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"


def _size_text(cfg: Config) -> str | None:
    size = training_crop(cfg)
    if size is None:
        return None
    return f"{size[0]} px" if size[0] == size[1] else f"{size[0]} × {size[1]} px"


def _length(cfg: Config) -> str | None:
    loop = cfg.get("train_cfg") or {}
    if loop.get("max_epochs") and loop["max_epochs"] > 0:
        count, unit = loop["max_epochs"], "epoch"
    elif loop.get("max_iters"):
        count, unit = loop["max_iters"], "iteration"
    else:
        return None
    return f"{count:,} {unit}{'s' if count > 1 else ''}"


def _optimization(cfg: Config) -> Sequence[tuple[str, Any]]:
    wrapper = cfg.get("optim_wrapper") or {}
    optimizer = wrapper.get("optimizer") or {}
    rates = wrapper.get("paramwise_cfg") or {}
    layer_decay = rates.get("decay_rate")
    rate = optimizer.get("lr")
    schedulers = cfg.get("param_scheduler") or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    kinds = [str(scheduler["type"]).split(".")[-1] for scheduler in schedulers]
    names = {"LinearLR": "linear warm-up", "CosineAnnealingLR": "cosine", "MultiStepLR": "steps"}
    is_amp = str(wrapper.get("type", "")).endswith("AmpOptimWrapper")
    return [
        ("Optimizer", optimizer.get("type")),
        ("Learning rate", None if rate is None else format_number(rate)),
        ("Layer decay", layer_decay),
        ("Weight decay", optimizer.get("weight_decay")),
        ("Schedule", ", then ".join(names.get(kind, kind) for kind in kinds)),
        ("Precision", wrapper.get("dtype", "float16") if is_amp else "float32"),
    ]
