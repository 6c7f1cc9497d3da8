"""Masks and images of any shape: a call is computed exactly where it is meant to be, else refused.

Shape suffixes: N batch, C channels, H and W pixels of an image or cells of a mask.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor

from mmconvnextv2.nn import FCMAE, ConvNeXtV2, random_masking

pytestmark = pytest.mark.unit

ARCH = dict(depths=(1, 1, 1, 1), channels=(2, 3, 4, 5))
CELL = 32
CHANNELS = 3

sides = st.sampled_from([0, 1, 31, 32, 33, 64, 96])
whole_sides = st.sampled_from([32, 64, 96])
usual_shapes = st.tuples(st.integers(1, 2), st.just(CHANNELS), whole_sides, whole_sides)
image_shapes = st.one_of(
    usual_shapes,
    st.tuples(st.integers(0, 2), st.just(CHANNELS), sides, sides),
    st.lists(st.sampled_from([0, 1, 2, 3, 32, 64]), max_size=5),
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Images and a mask that fit each other, except for what is drawn to be wrong with them."""
    wrong = draw(st.sets(st.sampled_from(["images", "shape", "type", "content"]), max_size=2))
    shape = tuple(draw(image_shapes if "images" in wrong else usual_shapes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.rand(shape, generator=generator)
    fitting = (shape[0], *(side // CELL for side in shape[2:])) if len(shape) > 2 else shape
    mask_shape = draw(st.lists(st.integers(0, 3), max_size=4)) if "shape" in wrong else fitting
    filling = "random"
    if "content" in wrong:
        filling = draw(st.sampled_from(["none", "all", "one image"]))
    mask = torch.full(tuple(mask_shape), filling == "all")
    if filling == "random":
        mask = torch.rand(mask.shape, generator=generator) < 0.5
    elif filling == "one image" and mask.dim() and len(mask):
        mask[0] = True
    if "type" in wrong:
        mask = mask.to(draw(st.sampled_from([torch.uint8, torch.float32])))
    return x, mask


def is_training_batch(x: Tensor, mask: Tensor) -> bool:
    """The rule in other words: whole cells, all images see something, something is removed."""
    if x.dim() != 4 or x.shape[1] != CHANNELS or any(side % CELL for side in x.shape[2:]):
        return False
    expected = (x.shape[0], x.shape[2] // CELL, x.shape[3] // CELL)
    if mask.dtype is not torch.bool or tuple(mask.shape) != expected:
        return False
    removed = [image.flatten().tolist() for image in mask]
    return all(False in image for image in removed) and any(True in image for image in removed)


@pytest.fixture(scope="module")
def fcmae() -> FCMAE:
    torch.manual_seed(0)
    return FCMAE.build(ARCH, CHANNELS, decoder_channels=8)


@pytest.mark.fault(8, "masks of any shape, type and content", "trained on, or one clear error")
@given(batch=batches(), layout=st.sampled_from(["packed", "masked"]))
def test_masks(fcmae: FCMAE, batch: tuple[Tensor, Tensor], layout: str) -> None:
    x, mask = batch
    fcmae.backbone.mask_layout = layout
    fcmae.zero_grad()
    try:
        loss = fcmae(x, mask=mask, mode="loss")["loss"]
    except ValueError as error:
        assert not is_training_batch(x, mask), error
        assert "mask" in str(error) or "image" in str(error)
        return
    assert is_training_batch(x, mask)
    event("trained on")
    loss.backward()
    gradients = [parameter.grad for parameter in fcmae.parameters()]
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.fault(8, "images of any shape", "features, or one clear error")
@given(shape=image_shapes)
def test_dense_images(shape: tuple[int, ...]) -> None:
    net = ConvNeXtV2(ARCH, CHANNELS, out_indices=(0, 3), gap_before_final_norm=False)
    shape = tuple(shape)
    allowed = len(shape) == 4 and shape[1] == CHANNELS and min(shape[2:]) >= CELL
    if not allowed:
        with pytest.raises(ValueError, match="images must"):
            net(torch.rand(shape))
        return
    first, last = net(torch.rand(shape))
    assert first.shape == (shape[0], 2, shape[2] // 4, shape[3] // 4)
    assert last.shape == (shape[0], 5, shape[2] // 32, shape[3] // 32)
    assert first.isfinite().all() and last.isfinite().all()


@pytest.mark.fault(8, "sizes and ratios of any value to draw masks with", "drawn, or an error")
@given(
    batch_size=st.integers(-1, 3),
    grid_size=st.tuples(st.integers(-2, 6), st.integers(-2, 6)),
    mask_ratio=st.one_of(st.floats(), st.floats(0, 1), st.none(), st.just("0.6")),
    cell_scale=st.one_of(st.integers(-1, 3), st.just(1), st.just(1.5)),
)
def test_random_masking(
    batch_size: int, grid_size: tuple[int, int], mask_ratio: float, cell_scale: int
) -> None:
    try:
        mask_NHW = random_masking(batch_size, grid_size, mask_ratio, cell_scale=cell_scale)
    except ValueError as error:
        assert any(
            word in str(error) for word in ("batch_size", "grid", "mask_ratio", "cell_scale")
        )
        return
    assert mask_NHW.dtype is torch.bool and mask_NHW.shape == (batch_size, *grid_size)
    squares = grid_size[0] * grid_size[1] // cell_scale**2
    visible = int(squares * (1 - mask_ratio))
    assert 0 < visible < squares
    for mask_HW in mask_NHW:
        assert (~mask_HW).sum() == visible * cell_scale**2
