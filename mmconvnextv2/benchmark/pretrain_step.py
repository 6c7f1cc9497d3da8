"""`pretrain_step`: the masked encoder, and the whole step of FCMAE, MAE and SparK."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mmconvnextv2.benchmark.compare import Candidate, Comparison, Settings, compare
from mmconvnextv2.benchmark.dense import peer_candidates
from mmconvnextv2.benchmark.ours import (
    MASK_RATIO,
    OPTIONAL_LAYOUTS,
    REFERENCE,
    build_encoder,
    compile_blocks,
    draw_images,
    draw_mask,
    layouts,
)
from mmconvnextv2.benchmark.peers import mmpretrain_mae, mmpretrain_spark, transformers_mae
from mmconvnextv2.benchmark.steps import TrainingStep, adamw
from mmconvnextv2.nn import FCMAE, VisibleCells

UNMASKED = "packed, nothing removed"
"""The packed layout under an empty mask: what masked would cost with packed's kernels."""

MAE = ("MAE ViT-B/16 (mmpretrain)", "MAE ViT-B/16 (transformers)")
"""The rival, by two libraries."""


def run(settings: Settings, args: argparse.Namespace) -> Comparison:
    """Compare encoders, then whole steps.

    Args:
        settings: how to measure.
        args: not used.
    """
    found = compare("encoder", encoder_candidates(settings), settings, [REFERENCE])
    found.extend(compare("step", step_candidates(settings), settings, [*MAE, REFERENCE]))
    return found


def encoder_candidates(settings: Settings) -> list[Candidate]:
    """Forward and backward: the masked encoder in each layout, dense encoders of others."""
    candidates = masked_encoders(settings)
    if settings.compile:
        candidates.append(
            Candidate(
                "packed, compiled",
                partial(_encoder_step, settings, "packed", MASK_RATIO, compiled=True),
                REFERENCE,
                compiled=True,
            )
        )
    candidates.append(Candidate(UNMASKED, partial(_encoder_step, settings, "packed", 0), ours=True))
    size = (settings.image_size, settings.image_size)
    return candidates + peer_candidates(settings, size, TrainingStep, UNMASKED)


def masked_encoders(settings: Settings, mask_ratio: float = MASK_RATIO) -> list[Candidate]:
    """Forward and backward of the masked encoder, a candidate a layout."""
    return [
        Candidate(
            name,
            partial(_encoder_step, settings, name, mask_ratio),
            REFERENCE,
            ours=name not in OPTIONAL_LAYOUTS,
        )
        for name in layouts()
    ]


def step_candidates(settings: Settings) -> list[Candidate]:
    """Whole steps: forward, loss, backward, AdamW; the same AdamW for everybody."""
    candidates = [
        Candidate(
            name,
            partial(fcmae_step, settings, name),
            REFERENCE,
            ours=name not in OPTIONAL_LAYOUTS,
        )
        for name in layouts()
    ]
    if settings.compile:
        candidates.append(
            Candidate(
                "packed, compiled",
                partial(fcmae_step, settings, "packed", compiled=True),
                REFERENCE,
                compiled=True,
            )
        )
    size = settings.image_size
    peers: dict[str, Callable[[], tuple[nn.Module, Callable[[Tensor], Tensor]]]] = {
        MAE[0]: lambda: mmpretrain_mae(size),
        MAE[1]: lambda: transformers_mae(size),
        "SparK (mmpretrain)": lambda: mmpretrain_spark(settings.arch, size),
    }

    def peer_step(name: str) -> TrainingStep:
        model, loss = peers[name]()
        model.to(settings.device).train()
        images = draw_images(settings)
        return TrainingStep(
            model, lambda: loss(images), settings.device, settings.dtype, adamw(model)
        )

    return candidates + [Candidate(name, partial(peer_step, name)) for name in peers]


def fcmae_step(settings: Settings, layout: str, compiled: bool = False) -> TrainingStep:
    """The whole step of FCMAE; the mask is drawn in it, and its plan made, as in training."""
    torch.manual_seed(settings.seed)
    model = FCMAE.build(settings.arch, mask_layout=layout).to(settings.device)
    if compiled:
        compile_blocks(model)
    images, generator = draw_images(settings), torch.Generator().manual_seed(settings.seed)

    def loss() -> Tensor:
        mask_NHW = draw_mask(settings, generator=generator)
        cells = VisibleCells.from_mask(mask_NHW)
        return model(images, mask=cells, mode="loss")["loss"]

    return TrainingStep(model, loss, settings.device, settings.dtype, adamw(model))


def _encoder_step(
    settings: Settings, layout: str, mask_ratio: float, compiled: bool = False
) -> TrainingStep:
    encoder, images = build_encoder(settings, mask_layout=layout), draw_images(settings)
    mask_NHW = draw_mask(settings, mask_ratio)
    if compiled:
        compile_blocks(encoder)
    return TrainingStep(
        encoder, lambda: encoder(images, mask_NHW)[-1], settings.device, settings.dtype
    )
