"""A measured step of a config's model, timed here or read from a benchmark's document."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import Optimizer

from mmconvnextv2.analysis.complexity import build_model, default_shape, shapes_only
from mmconvnextv2.analysis.plan import (
    LastingMemory,
    Measurement,
    lasting_memory,
    state_copies,
    trained_bytes,
)
from mmconvnextv2.benchmark.environment import cpu_name
from mmconvnextv2.benchmark.measure import measure
from mmconvnextv2.benchmark.memory import measure_memory
from mmconvnextv2.benchmark.ours import MASK_RATIO, compile_blocks
from mmconvnextv2.benchmark.results import read_document
from mmconvnextv2.benchmark.steps import DTYPES, TrainingStep

WARMUP = 2
"""Steps before those that are measured."""


@dataclass(frozen=True)
class Source:
    """A measurement, and in words what was measured, where and how."""

    measurement: Measurement
    text: str


def from_benchmark(cfg: Config, path: Path) -> Source:
    """Take the step of FCMAE from a benchmark's document.

    Raises:
        ValueError: the file is no such document, or of a step that is not the config's.
    """
    document = read_document(path)
    if document["benchmark"] != "pretrain_step":
        raise ValueError(f"{path} is of {document['benchmark']!r}; pretrain_step is needed")
    if cfg.model.type != "FCMAE":
        raise ValueError(f"{path} has steps of FCMAE, and the config's model is {cfg.model.type}")
    check_same_step(cfg, document["arguments"], path)
    name = cfg.model.backbone.get("mask_layout", "packed")
    if has_hook(cfg, "CompileBlocksHook"):
        name = f"{name}, compiled"
    in_step = [row for row in document["rows"] if row["group"] == "step"]
    row = next((row for row in in_step if row["name"] == name), None)
    if row is None:
        raise ValueError(f"{path} has no step {name!r}, only {[row['name'] for row in in_step]}")
    memory, environment = row["memory"], document["environment"]
    measurement = Measurement(
        row["seconds"]["median"], row["images"], memory and memory["activations"]
    )
    where = environment["gpu"] or f"{environment['cpu']} ({environment['threads']} threads)"
    precision = document["arguments"]["dtype"]
    return Source(measurement, f"{name}, {precision}, on {where}, {document['date'][:10]}, {path}")


def check_same_step(cfg: Config, arguments: dict[str, Any], path: Path) -> None:
    """Check that a benchmark measured the step that a config trains with.

    Raises:
        ValueError: with everything that differs.
    """
    backbone = cfg.model.backbone
    arch = backbone.get("arch")
    asked = {
        "architecture": arch if isinstance(arch, str) else dict(arch),
        "image size": default_shape(cfg),
        "precision": precision_of(cfg),
        "mask ratio": cfg.model.data_preprocessor.get("mask_ratio", MASK_RATIO),
        "with_cp": backbone.get("with_cp", False),
        "use_grn": backbone.get("use_grn", True),
        "response_norm": backbone.get("response_norm"),
    }
    size = arguments["image_size"]
    found = {
        "architecture": arguments["arch"],
        "image size": (size, size),
        "precision": arguments["dtype"],
        "mask ratio": MASK_RATIO,
        "with_cp": False,
        "use_grn": True,
        "response_norm": None,
    }
    differences = [
        f"{name} {found[name]}, not {asked[name]}" for name in asked if asked[name] != found[name]
    ]
    if differences:
        raise ValueError(f"{path} is of another step than the config's: {'; '.join(differences)}")


def from_measurement(cfg: Config, steps: int, batch: int) -> Source:
    """Time steps of the config's model on random images, on this machine.

    Args:
        cfg: a config of FCMAE or of a classifier.
        steps: how many.
        batch: images of a step.

    Raises:
        ValueError: a model of another kind, or a number smaller than 1.
    """
    for name, value in (("steps", steps), ("images in a batch", batch)):
        if value < 1:
            raise ValueError(f"the number of {name} must be at least 1, got {value}")
    inputs = make_batch(cfg, batch)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build_model(cfg).to(device).train()
    if has_hook(cfg, "CompileBlocksHook"):
        compile_blocks(model)
    precision = precision_of(cfg)
    optimizer = build_optimizer(cfg, (p for p in model.parameters() if p.requires_grad))
    step = TrainingStep(model, loss_of(model, inputs), device, DTYPES[precision], optimizer)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{steps} steps", total=WARMUP + steps)
        timing = measure(
            dict(step=step),
            repeat=steps,
            warmup=WARMUP,
            device=device,
            on_sample=lambda _: progress.advance(task),
        )["step"]
    step.release_gradients = False
    memory = measure_memory(step, model, optimizer, device)
    cpu = f"{cpu_name()} ({torch.get_num_threads()} threads)"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    text = f"median of {steps} steps on random images, {precision}, on {where}"
    return Source(Measurement(timing.median, batch, memory.activations), text)


def make_batch(cfg: Config, batch: int) -> dict[str, Any]:
    """Random images as a loader delivers them, for a classifier with random labels.

    Raises:
        ValueError: the config's model is neither FCMAE nor a classifier.
    """
    if cfg.model.type not in ("FCMAE", "ImageClassifier"):
        raise ValueError(
            f"only steps of FCMAE and of classifiers can be timed on random images, and one of "
            f"{cfg.model.type} depends on annotations: give --step-seconds what PlanHook logs"
        )
    images = torch.randint(256, (batch, 3, *default_shape(cfg)), dtype=torch.uint8)
    if cfg.model.type == "FCMAE":
        return dict(inputs=images)
    from mmpretrain.structures import DataSample

    labels = torch.randint(cfg.model.head.num_classes, (batch,))
    return dict(
        inputs=images, data_samples=[DataSample().set_gt_label(int(label)) for label in labels]
    )


def loss_of(model: Any, batch: dict[str, Any]) -> Callable[[], Tensor]:
    """What computes the model's loss on a batch, preprocessing included."""

    def loss() -> Tensor:
        losses = model(**model.data_preprocessor(batch, True), mode="loss")
        return model.parse_losses(losses)[0]

    return loss


def precision_of(cfg: Config) -> str:
    """Name of the precision that a config trains in, "fp32" or "bf16".

    Raises:
        ValueError: its optimizer wrapper is of another kind.
    """
    kind = cfg.optim_wrapper.get("type", "OptimWrapper")
    kind = getattr(kind, "__name__", kind)
    names = {"OptimWrapper": "fp32", "AutocastOptimWrapper": "bf16"}
    if kind not in names:
        raise ValueError(f"optim_wrapper.type must be one of {', '.join(names)}, got {kind}")
    return names[kind]


def count_lasting(cfg: Config) -> LastingMemory:
    """Count the memory of the config's model, gradients, optimizer and averaged weights."""
    with shapes_only():
        model = build_model(cfg)
    copies = state_copies(lambda parameters: build_optimizer(cfg, parameters))
    return lasting_memory(model, copies * trained_bytes(model), has_hook(cfg, "EMAHook"))


def build_optimizer(cfg: Config, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The config's optimizer, with all parameters in one group."""
    return OPTIMIZERS.build({**cfg.optim_wrapper.optimizer, "params": list(parameters)})


def has_hook(cfg: Config, name: str) -> bool:
    """Whether a hook of this name takes part in the config's runs."""
    hooks = [*(cfg.get("default_hooks") or {}).values(), *(cfg.get("custom_hooks") or [])]
    return any(hook is not None and hook["type"] == name for hook in hooks)
