"""Run an exported file beside the module that it came from.

Shape suffixes: N batch, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmconvnextv2.deployment.modules import Deployable

Runner = Callable[[Tensor], Sequence[Tensor]]
"""Images ``(N, C, H, W)`` to the outputs of an exported file."""


class CheckFailed(RuntimeError):
    """An exported file that does not compute what the module does."""


@dataclass(frozen=True)
class Comparison:
    """How far an exported file is from the float32 module on one batch.

    Attributes:
        images: what the batch showed.
        shape: its shape (N, C, H, W).
        error: largest absolute difference of any output.
        relative: the same, relative to the largest magnitude of the output concerned.
    """

    images: str
    shape: tuple[int, ...]
    error: float
    relative: float

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return (
            f"{shape} {self.images}: max error {self.error:.2e}, "
            f"{self.relative:.2e} of the largest output"
        )


def compare(
    module: Deployable, run: Runner, shapes: Sequence[tuple[int, int, int]], tolerance: float
) -> list[Comparison]:
    """Compare on noise and on pictures.

    Args:
        module: the float32 module.
        run: runs the exported file.
        shapes: (N, H, W) of each batch.
        tolerance: largest `Comparison.relative` that passes.

    Returns:
        Two comparisons a shape.

    Raises:
        CheckFailed: an output has another shape, or differs by more than the tolerance.
    """
    comparisons = []
    for shape in shapes:
        for name, image_NCHW in _inputs(module, shape):
            with torch.no_grad():
                expected = module(image_NCHW)
            found = _compare(name, image_NCHW, run(image_NCHW), expected)
            # Written so that a difference that is not a number fails.
            if not found.relative <= tolerance:
                raise CheckFailed(f"{found}; the tolerance is {tolerance:g}")
            comparisons.append(found)
    return comparisons


def _compare(
    name: str, image_NCHW: Tensor, found: Sequence[Tensor], expected: Sequence[Tensor]
) -> Comparison:
    got, wanted = [tuple(x.shape) for x in found], [tuple(x.shape) for x in expected]
    if got != wanted:
        raise CheckFailed(f"{tuple(image_NCHW.shape)} gives shapes {got} in place of {wanted}")
    errors = torch.stack([(a - b).abs().max() for a, b in zip(found, expected, strict=True)])
    scales = torch.stack([b.abs().max() for b in expected])
    return Comparison(
        name, tuple(image_NCHW.shape), errors.max().item(), (errors / scales).max().item()
    )


def _inputs(module: Deployable, shape: tuple[int, int, int]) -> Iterator[tuple[str, Tensor]]:
    """Batches of what the module expects, no two images alike."""
    batch, height, width = shape
    size = (batch, module.in_channels, height, width)
    noise_NCHW = torch.rand(size, generator=torch.Generator().manual_seed(0)) * 255
    for name, pixels_NCHW in (("noise", noise_NCHW), ("pattern", _pattern(size))):
        yield name, pixels_NCHW if module.normalize else (pixels_NCHW - 118) / 58


def _pattern(size: tuple[int, int, int, int]) -> Tensor:
    """Slopes, edges and black areas, of another contrast in each channel and image."""
    batch, channels, height, width = size
    y_H1 = torch.linspace(0, 1, height)[:, None]
    x_1W = torch.linspace(0, 1, width)[None]
    slope_HW = (y_H1 + 1 - x_1W) / 2
    black_HW = (torch.arange(height)[:, None] // 20 + torch.arange(width)[None] // 20) % 2
    contrast_N = 255 / (1 + torch.arange(batch))
    fading_C = 1 / (1 + 0.5 * torch.arange(channels))
    return contrast_N[:, None, None, None] * fading_C[:, None, None] * slope_HW * black_HW


def onnx_runner(path: Path, output_names: Sequence[str]) -> Runner:
    """Run an ONNX file with onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image_NCHW: Tensor) -> list[Tensor]:
        arrays = session.run(list(output_names), {"image": image_NCHW.numpy()})
        return [torch.from_numpy(array) for array in arrays]

    return run


def program_runner(path: Path) -> Runner:
    """Run a file of `torch.export.save`."""
    module = torch.export.load(path).module()

    def run(image_NCHW: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            return module(image_NCHW)

    return run
