"""Twenty seeded steps of FCMAE against a golden file that the slow float64 reference wrote.

To write the file again, which is needed only when this test's own setting changes:

    python tests/test_models/test_golden_loss.py

Everything random comes from NumPy's RandomState, whose streams are frozen for good, so the file
holds for any version of torch and any machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmconvnextv2.nn import FCMAE

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "fcmae_tiny_loss.txt"
STEPS, BATCH, GRID = 20, 4, 3

# Between machines only the order of sums differs. Measured on one: 5e-13 in float64, the file's own
# rounding, and 2e-7 in float32. The rest is room for what AdamW's division by small second moments
# makes of other rounding errors over 20 steps.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}


def build() -> FCMAE:
    """A narrow FCMAE with every parameter drawn from RandomState, in the order of the names."""
    arch = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])
    model = FCMAE.build(arch, decoder_channels=16)
    random = np.random.RandomState(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.from_numpy(random.standard_normal(parameter.shape))
            if parameter.ndim > 1:
                parameter.copy_(values / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(values * 0.1 + float("norm.weight" in name))
    return model


def batches() -> Iterable[tuple[Tensor, Tensor]]:
    """Images of three plane waves each, and masks with 3 of 9 cells visible."""
    random = np.random.RandomState(1)
    rows, columns = np.mgrid[: 32 * GRID, : 32 * GRID]
    for _ in range(STEPS):
        x_NCHW = np.zeros((BATCH, 3, 32 * GRID, 32 * GRID))
        for image_CHW in x_NCHW:
            for _ in range(3):
                fy, fx, phase = random.uniform(-0.3, 0.3, 3) * (1, 1, 20)
                weight_C11 = random.standard_normal((3, 1, 1))
                image_CHW += weight_C11 * np.sin(fy * rows + fx * columns + phase)
        order_NL = random.uniform(size=(BATCH, GRID * GRID)).argsort(1)
        mask_NHW = torch.from_numpy(order_NL >= 3).view(BATCH, GRID, GRID)
        yield torch.from_numpy(x_NCHW), mask_NHW


def train(
    parameters: list[Tensor], loss_of: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> list[float]:
    """The loss before each of the steps of AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    losses = []
    for x_NCHW, mask_NHW in batches():
        loss = loss_of(x_NCHW.to(dtype), mask_NHW)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def reference_losses() -> list[float]:
    """The same steps by loops over visible positions, in float64."""
    import reference

    state = reference.in_float64(build().state_dict())
    return train(
        list(state.values()), lambda x, mask: reference.fcmae_loss(state, x, mask), torch.float64
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_twenty_steps_reproduce_the_golden_losses(layout, dtype):
    golden = [float(line) for line in GOLDEN.read_text().split()]
    assert len(golden) == STEPS and golden[-1] < golden[0]
    model: nn.Module = build().to(dtype)
    model.backbone.mask_layout = layout
    losses = train(
        list(model.parameters()),
        lambda x, mask: model(x, mask=mask, mode="loss")["loss"],
        dtype,
    )
    assert losses == pytest.approx(golden, rel=TOLERANCE[dtype])


@pytest.mark.slow
def test_the_golden_file_is_what_the_reference_writes():
    golden = [float(line) for line in GOLDEN.read_text().split()]
    assert reference_losses() == pytest.approx(golden, rel=TOLERANCE[torch.float64])


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    GOLDEN.write_text("".join(f"{loss:.12f}\n" for loss in reference_losses()))
