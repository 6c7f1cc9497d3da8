"""Export a model to ONNX or torch.export, check the file, and only then put it in place."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch.export import Dim, ExportedProgram

from mmconvnextv2.deployment.check import Comparison, compare, onnx_runner, program_runner
from mmconvnextv2.deployment.modules import Deployable, load_deployable
from mmconvnextv2.deployment.precision import use_float16
from mmconvnextv2.nn import CELL_SIZE

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
"""The oldest that torch's exporter writes, so the one that most runtimes read."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}
"""Largest error that passes, relative to the largest magnitude of an output."""

SINGLE_FILE_BYTES = 2**30
"""Weights beyond this go to a second file: protobuf ends at 2 GiB."""

_TRACED_SHAPE = (64, 96)
_CHECKED_SHAPES = ((1, 224, 224), (3, 96, 160), (2, 64, 64))


class MissingPackages(ImportError):
    """Packages that an export needs are not installed."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: the file.
        metadata: what the graph expects and gives, as stored in the file.
        comparisons: how far it is from the module, batch by batch.
    """

    path: Path
    metadata: dict[str, str]
    comparisons: list[Comparison]


def export(
    config: str | os.PathLike[str] | Config,
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    part: str = "model",
    shape: tuple[int, int] | None = None,
    batch: int | None = None,
    normalize: bool = True,
    float16: bool = False,
    opset: int = OPSET,
    tolerance: float | None = None,
) -> Export:
    """Write a file that runs without this package, after comparing it with the model.

    The graph has one input, ``image``, float32 ``(N, C, H, W)``, and float32 outputs: ``logits``
    ``(N, classes)`` of a classifier, ``logits`` ``(N, classes, H, W)`` of a segmentor, or
    ``stage1`` to ``stage4`` of a backbone.

    Args:
        config: see `load_deployable`.
        checkpoint: see `load_deployable`.
        out: file to write, ``*.onnx`` or, for `torch.export`, ``*.pt2``.
        part: "model" or "backbone".
        shape: height and width, multiples of 32, that the graph is fixed to. By default they stay
            free; a segmentor's pooling needs fixed ones, by default those of its training crops.
        batch: number of images that the graph is fixed to; None leaves it free.
        normalize: the graph takes pixel values 0 to 255 and normalises them itself.
        float16: compute in float16, apart from norms; see `use_float16`.
        opset: version of the ONNX operators, at least 18.
        tolerance: largest error that passes; by default that of `TOLERANCE`. It is relative to the
            largest magnitude of an output, and against float32 also for float16.

    Returns:
        What was written.

    Raises:
        FileExistsError: there is such a file already.
        FileNotFoundError: config, checkpoint or the folder of `out` are not there.
        MissingPackages: a package is missing, or torch is too old.
        ValueError: an argument, the config or the checkpoint does not allow it.
        CheckFailed: the file does not compute what the model does; it is removed.
    """
    out = Path(out)
    _check_arguments(out, shape, batch, opset)
    _check_packages(out.suffix)
    module = load_deployable(config, checkpoint, part, normalize)
    shape = shape or module.fixed_shape
    if shape is not None:
        _check_shape(shape)
    exported = use_float16(module) if float16 else module
    program = trace(exported, batch, shape)
    metadata = describe(exported, batch, shape)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        temporary = Path(folder) / out.name
        if out.suffix == ".onnx":
            write_onnx(program, temporary, exported, opset, metadata)
            run = onnx_runner(temporary, module.output_names)
        else:
            torch.export.save(
                program, temporary, extra_files={"metadata.json": json.dumps(metadata)}
            )
            run = program_runner(temporary)
        if tolerance is None:
            tolerance = TOLERANCE[exported.compute_dtype]
        comparisons = compare(module, run, list(_shapes_to_check(batch, shape)), tolerance)
        # Weights in a file of their own come first: the graph is useless without them.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == out.name):
            os.replace(file, out.parent / file.name)
    return Export(out, metadata, comparisons)


def trace(
    module: Deployable, batch: int | None = None, shape: tuple[int, int] | None = None
) -> ExportedProgram:
    """Record the module's operations for free or fixed sizes.

    Args:
        module: what to record.
        batch: number of images; None leaves it free.
        shape: height and width; None leaves them free, in multiples of 32 from 64.
    """
    sizes: dict[int, Any] = {}
    if batch is None:
        sizes[0] = Dim("batch", min=1)
    if shape is None:
        # At 32 pixels the last stage has a single position, which torch.export treats apart.
        sizes[2] = CELL_SIZE * Dim("rows", min=2)
        sizes[3] = CELL_SIZE * Dim("columns", min=2)
    # Two images, since torch.export takes a batch of one for a constant.
    image_NCHW = torch.zeros(batch or 2, module.in_channels, *(shape or _TRACED_SHAPE))
    with torch.no_grad():
        return torch.export.export(module, (image_NCHW,), dynamic_shapes=(sizes,), strict=False)


def write_onnx(
    program: ExportedProgram, path: Path, module: Deployable, opset: int, metadata: dict[str, str]
) -> None:
    """Translate a recorded module to ONNX; large weights go to ``<path>.data``."""
    free = {2: "height", 3: "width"} if metadata["height"] == "free" else {}
    if metadata["batch"] == "free":
        free[0] = "batch"
    with warnings.catch_warnings():
        # torch 2.11 warns of its own use of a class that it has deprecated.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        translated = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=list(module.output_names),
            opset_version=opset,
            dynamic_shapes=(free,),  # names only: the program knows what is free
            verbose=False,
        )
    assert translated is not None
    translated.model.metadata_props.update(metadata)
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    translated.save(path, external_data=size > SINGLE_FILE_BYTES)


def describe(
    module: Deployable, batch: int | None, shape: tuple[int, int] | None
) -> dict[str, str]:
    """What the graph expects and gives, for those who have only the file."""
    height, width = ("free", "free") if shape is None else map(str, shape)
    return dict(
        input=f"image, float32 (N, C, H, W), {module.expects}",
        batch="free" if batch is None else str(batch),
        height=height,
        width=width,
        outputs=", ".join(module.output_names),
        precision=str(module.compute_dtype).removeprefix("torch."),
    )


def _shapes_to_check(
    batch: int | None, shape: tuple[int, int] | None
) -> Iterator[tuple[int, int, int]]:
    if shape is None:
        yield from ((batch or n, height, width) for n, height, width in _CHECKED_SHAPES)
    else:
        yield from ((n, *shape) for n in ([1, 3] if batch is None else [batch]))


def _check_arguments(
    out: Path, shape: tuple[int, int] | None, batch: int | None, opset: int
) -> None:
    if out.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{out}: the name has to end in .onnx or, for torch.export, in .pt2")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no folder {out.parent} to write {out.name} to")
    for path in (out, out.with_name(f"{out.name}.data")):
        if path.exists():
            raise FileExistsError(f"{path} exists: remove it, or choose another name")
    if shape is not None:
        _check_shape(shape)
    if batch is not None and batch < 1:
        raise ValueError(f"the batch must be at least 1, got {batch}")
    if not OPSET <= opset <= 23:
        raise ValueError(f"the opset must lie between {OPSET} and 23, got {opset}")


def _check_shape(shape: tuple[int, int]) -> None:
    height, width = shape
    if min(shape) < CELL_SIZE or height % CELL_SIZE or width % CELL_SIZE:
        raise ValueError(f"height and width must be multiples of 32, got {height}x{width}")


def _check_packages(suffix: str) -> None:
    if torch.torch_version.TorchVersion(torch.__version__) < "2.6":
        raise MissingPackages(f"export needs torch 2.6 or later, this is {torch.__version__}")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if suffix == ".onnx" and missing:
        raise MissingPackages(
            f"ONNX export needs {', '.join(missing)}: pip install {' '.join(ONNX_PACKAGES)}"
        )
