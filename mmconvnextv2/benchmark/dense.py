"""`dense`: the encoder on whole images, ours against timm, transformers and mmpretrain."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from mmconvnextv2.benchmark.compare import Candidate, Comparison, Settings, compare
from mmconvnextv2.benchmark.ours import build_encoder, compile_blocks, draw_images
from mmconvnextv2.benchmark.peers import DENSE_ENCODERS
from mmconvnextv2.benchmark.steps import ForwardPass, TrainingStep
from mmconvnextv2.nn import CELL_SIZE

OURS = "ConvNeXtV2"

Size = tuple[int, int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark alone understands."""
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=parse_size,
        default=[(224, 224), (800, 1280)],
        metavar="HxW",
        help="sizes of images (224x224 800x1280); of sizes other than --image-size squared, a "
        "batch has as many images as have the same number of pixels, at least one",
    )


def run(settings: Settings, args: argparse.Namespace) -> Comparison:
    """Compare forward passes, then forward and backward passes, at each size.

    Args:
        settings: how to measure.
        args: ``sizes``.
    """
    found = Comparison()
    for size in args.sizes:
        height, width = size
        batch = max(1, settings.batch * settings.image_size**2 // (height * width))
        sized = replace(settings, batch=batch)
        for what, step in (("forward", ForwardPass), ("forward + backward", TrainingStep)):
            candidates = [*our_candidates(sized, size, step), *peer_candidates(sized, size, step)]
            group = f"{what}, {batch} x {height}x{width}"
            found.extend(compare(group, candidates, sized, [OURS]))
    return found


def our_candidates(settings: Settings, size: Size, step: type[TrainingStep]) -> list[Candidate]:
    """Our encoder, plain and compiled by block."""

    def build(compiled: bool) -> TrainingStep:
        encoder, images = build_encoder(settings), draw_images(settings, size)
        if compiled:
            compile_blocks(encoder)
        return _step(step, encoder, lambda: encoder(images)[-1], settings)

    candidates = [Candidate(OURS, partial(build, False), ours=True)]
    if settings.compile:
        name = f"{OURS}, compiled"
        candidates.append(Candidate(name, partial(build, True), equals=OURS, compiled=True))
    return candidates


def peer_candidates(
    settings: Settings, size: Size, step: type[TrainingStep], equals: str = OURS
) -> list[Candidate]:
    """The encoders of other libraries with our weights, in both memory formats.

    Args:
        settings: how to measure.
        size: height and width of the images.
        step: what to do with the encoder.
        equals: the candidate whose output theirs must equal.
    """

    def build(name: str, memory_format: torch.memory_format, compiled: bool) -> TrainingStep:
        encoder: nn.Module = DENSE_ENCODERS[name](build_encoder(settings), settings.arch)
        encoder = encoder.to(settings.device).to(memory_format=memory_format)  # type: ignore[call-overload]
        images = draw_images(settings, size).contiguous(memory_format=memory_format)
        network: Callable[[Tensor], Tensor] = torch.compile(encoder) if compiled else encoder
        return _step(step, encoder, lambda: network(images), settings)

    formats = {"": torch.contiguous_format, ", channels last": torch.channels_last}
    return [
        Candidate(
            f"{name}, dense{suffix}{', compiled' if compiled else ''}",
            partial(build, name, formats[suffix], compiled),
            equals=equals,
            compiled=compiled,
        )
        for compiled in ((False, True) if settings.compile else (False,))
        for name in DENSE_ENCODERS
        for suffix in formats
    ]


def parse_size(text: str) -> Size:
    """Height and width from a text such as 800x1280.

    Raises:
        argparse.ArgumentTypeError: it is no such text, or a side is shorter than a cell.
    """
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and min(int(height), int(width)) >= CELL_SIZE):
        raise argparse.ArgumentTypeError(
            f"must be HEIGHTxWIDTH with sides of at least {CELL_SIZE} pixels, got {text!r}"
        )
    return int(height), int(width)


def _step(
    step: type[TrainingStep],
    encoder: nn.Module,
    forward: Callable[[], Tensor],
    settings: Settings,
) -> TrainingStep:
    encoder.train(step is TrainingStep)
    return step(encoder, forward, settings.device, settings.dtype)
