"""All layouts are one network: features, every gradient, no leak, no batch effect."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import pytest
import reference
import torch
from torch import Tensor, nn

from mmconvnextv2.nn import ConvNeXtV2, VisibleCells

pytestmark = pytest.mark.unit

# Legend: N sample, C channel, H W pixels, rows and columns.

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

CASES = {
    "square-one-visible": ((64, 64), [1]),
    "wide-unequal": ((64, 96), [5, 2]),
    "tall-unequal-one-visible": ((96, 64), [1, 3, 6]),
    "recipe-224": ((224, 224), [19, 19]),
    "largest-unequal": ((256, 256), [25, 1]),
    "wide-batch-3": ((128, 192), [9, 9, 9]),
    "batch-16-equal": ((64, 64), [2] * 16),
    "batch-16-unequal": ((64, 96), [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 1, 6, 6]),
    "all-visible": ((96, 128), [12, 12]),
}

OUTPUTS = {
    "pretraining": dict(output_norms=False, gap_before_final_norm=False),
    "pyramid": dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False),
    "pooled": dict(gap_before_final_norm=True),
}

MASKED_LAYOUTS = [
    "packed",
    "masked",
    pytest.param(
        "minkowski",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("MinkowskiEngine") is None,
            reason="needs MinkowskiEngine, which has to be compiled: requirements/minkowski.txt",
        ),
    ),
]

Results = tuple[tuple[Tensor, ...], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def minkowski_on_one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """MinkowskiEngine's threads add in the order in which they come; one repeats bit by bit."""
    callspec = getattr(request.node, "callspec", None)
    threads = torch.get_num_threads()
    if callspec is not None and callspec.params.get("layout") == "minkowski":
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def forward_backward(net: nn.Module, x_NCHW: Tensor, *mask: Tensor) -> Results:
    """Features and the gradient of a random linear functional of them, input included."""
    net.zero_grad()
    x_NCHW = x_NCHW.clone().requires_grad_()
    features = net(x_NCHW, *mask)
    generator = torch.Generator().manual_seed(1)
    functional = sum(
        (f * torch.randn(f.shape, generator=generator, dtype=torch.float64).to(f)).sum()
        for f in features
    )
    functional.backward()
    gradients = {"input": x_NCHW.grad}
    gradients |= {name: p.grad.clone() for name, p in net.named_parameters()}
    return features, gradients


def assert_same(
    actual: Results, expected: Results, error: Callable[..., float], tolerance: float
) -> None:
    """Every feature map and every gradient within the norm-wise relative tolerance."""
    errors = {
        f"feature {i}": error(a, b)
        for i, (a, b) in enumerate(zip(actual[0], expected[0], strict=True))
    }
    assert actual[1].keys() == expected[1].keys()
    errors |= {name: error(actual[1][name], grad) for name, grad in expected[1].items()}
    too_far = {name: value for name, value in errors.items() if value > tolerance}
    assert not too_far


def build(randomize_grn: Callable, arch: object, **kwargs: object) -> nn.Module:
    return randomize_grn(ConvNeXtV2(arch=arch, **kwargs))


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "fp64"])
@pytest.mark.parametrize("case", CASES)
def test_packed_equals_masked(
    case, dtype, outputs, tiny_arch, randomize_grn, random_mask, relative_error
):
    (height, width), visible = CASES[case]
    net = build(randomize_grn, tiny_arch, **OUTPUTS[outputs]).to(dtype)
    x_NCHW = torch.randn(len(visible), 3, height, width, dtype=dtype)
    mask_NHW = random_mask(visible, (height // 32, width // 32))

    net.mask_layout = "masked"
    expected = forward_backward(net, x_NCHW, mask_NHW)
    net.mask_layout = "packed"
    actual = forward_backward(net, x_NCHW, mask_NHW)

    assert all(grad.norm() > 0 for grad in expected[1].values()), "a zero gradient tests nothing"
    assert_same(actual, expected, relative_error, TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["recipe-224", "tall-unequal-one-visible", "all-visible"])
def test_packed_on_a_gpu_equals_masked_on_the_cpu(
    case, tiny_arch, randomize_grn, random_mask, relative_error
):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    (height, width), visible = CASES[case]
    net = build(randomize_grn, tiny_arch, **OUTPUTS["pyramid"]).double()
    x_NCHW = torch.randn(len(visible), 3, height, width, dtype=torch.float64)
    mask_NHW = random_mask(visible, (height // 32, width // 32))
    net.mask_layout = "masked"
    features, gradients = forward_backward(net, x_NCHW, mask_NHW)
    net = net.cuda()
    net.mask_layout = "packed"
    on_gpu = forward_backward(net, x_NCHW.cuda(), mask_NHW.cuda())
    actual = tuple(f.cpu() for f in on_gpu[0]), {n: g.cpu() for n, g in on_gpu[1].items()}
    assert_same(actual, (features, gradients), relative_error, 1e-10)


@pytest.mark.parametrize("layout", MASKED_LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "fp64"])
def test_all_visible_equals_dense(dtype, layout, tiny_arch, randomize_grn, relative_error):
    net = build(randomize_grn, tiny_arch, mask_layout=layout, **OUTPUTS["pyramid"]).to(dtype)
    x_NCHW = torch.randn(3, 3, 96, 64, dtype=dtype)
    mask_NHW = torch.zeros(3, 3, 2, dtype=torch.bool)
    expected = forward_backward(net, x_NCHW)
    actual = forward_backward(net, x_NCHW, mask_NHW)
    assert_same(actual, expected, relative_error, TOLERANCE[dtype])


def test_packed_equals_masked_for_atto(randomize_grn, random_mask, relative_error):
    net = build(randomize_grn, "atto", **OUTPUTS["pretraining"]).double()
    x_NCHW = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    mask_NHW = random_mask([3, 4], (3, 3))
    net.mask_layout = "masked"
    expected = forward_backward(net, x_NCHW, mask_NHW)
    net.mask_layout = "packed"
    actual = forward_backward(net, x_NCHW, mask_NHW)
    assert_same(actual, expected, relative_error, 1e-10)


@pytest.mark.parametrize("outputs", ["pretraining", "pyramid", "pooled"])
@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_agrees_with_the_reference(
    layout, outputs, tiny_arch, randomize_grn, random_mask, relative_error
):
    net = build(randomize_grn, tiny_arch, mask_layout=layout, **OUTPUTS[outputs]).double()
    x_NCHW = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    mask_NHW = random_mask([2, 4], (2, 3))
    features, gradients = forward_backward(net, x_NCHW, mask_NHW)

    state = reference.in_float64(net.state_dict())
    stages = reference.encode(state, x_NCHW, mask_NHW, gap=outputs == "pooled")
    expected = stages if outputs == "pyramid" else stages[-1:]
    generator = torch.Generator().manual_seed(1)
    sum(
        (f * torch.randn(f.shape, generator=generator, dtype=torch.float64)).sum() for f in expected
    ).backward()

    for actual, wanted in zip(features, expected, strict=True):
        assert relative_error(actual, wanted) < 1e-10
    errors = {name: relative_error(gradients[name], state[name].grad) for name in state}
    assert max(errors.values()) < 1e-10, errors


@pytest.mark.parametrize("size", [(64, 64), (75, 98)])
def test_dense_agrees_with_the_reference(size, tiny_arch, randomize_grn, relative_error):
    net = build(randomize_grn, tiny_arch, **OUTPUTS["pyramid"]).double()
    x_NCHW = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = reference.encode(reference.in_float64(net.state_dict()), x_NCHW)
    for actual, wanted in zip(net(x_NCHW), expected, strict=True):
        assert relative_error(actual, wanted) < 1e-12


@pytest.mark.parametrize("layout", MASKED_LAYOUTS)
def test_removed_positions_are_zero(layout, tiny_arch, randomize_grn, random_mask):
    net = build(randomize_grn, tiny_arch, mask_layout=layout, **OUTPUTS["pyramid"])
    mask_NHW = random_mask([1, 3], (2, 2))
    for stage, feature_NCHW in enumerate(net(torch.randn(2, 3, 64, 64), mask_NHW)):
        side = 8 >> stage
        removed_NHW = mask_NHW.repeat_interleave(side, 1).repeat_interleave(side, 2)
        channels_last = feature_NCHW.permute(0, 2, 3, 1)
        assert (channels_last[removed_NHW] == 0).all()
        assert (channels_last[~removed_NHW] != 0).any(-1).all()


@pytest.mark.parametrize("noise", [100.0, float("inf"), float("nan")])
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("layout", MASKED_LAYOUTS)
def test_removed_pixels_do_not_leak(layout, outputs, noise, tiny_arch, randomize_grn, random_mask):
    net = build(randomize_grn, tiny_arch, mask_layout=layout, **OUTPUTS[outputs])
    mask_NHW = random_mask([2, 5, 1], (2, 3))
    x_NCHW = torch.randn(3, 3, 64, 96)
    pixels_N1HW = mask_NHW.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
    other_NCHW = torch.where(pixels_N1HW, noise * torch.randn_like(x_NCHW), x_NCHW)
    assert not torch.equal(x_NCHW, other_NCHW)

    for first, second in zip(net(x_NCHW, mask_NHW), net(other_NCHW, mask_NHW), strict=True):
        assert torch.equal(first, second)
    _, gradients = forward_backward(net, x_NCHW, mask_NHW)
    assert (gradients["input"] * pixels_N1HW == 0).all()


@pytest.mark.parametrize("layout", [*MASKED_LAYOUTS, "dense"])
def test_a_sample_does_not_see_the_others(layout, tiny_arch, randomize_grn, random_mask):
    net = build(randomize_grn, tiny_arch, **OUTPUTS["pyramid"])
    mask = () if layout == "dense" else (random_mask([3, 1, 2], (2, 2)),)
    if layout != "dense":
        net.mask_layout = layout
    x_NCHW = torch.randn(3, 3, 64, 64)
    other_NCHW = x_NCHW.clone()
    other_NCHW[1:] = 10 * torch.randn(2, 3, 64, 64)

    for first, second in zip(net(x_NCHW, *mask), net(other_NCHW, *mask), strict=True):
        assert torch.equal(first[0], second[0])
        assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("layout", [*MASKED_LAYOUTS, "dense"])
def test_a_sample_alone_equals_the_sample_in_a_batch(
    layout, tiny_arch, randomize_grn, random_mask, relative_error
):
    net = build(randomize_grn, tiny_arch, **OUTPUTS["pyramid"]).double()
    masks_NHW = random_mask([3, 1, 2], (2, 2))
    if layout != "dense":
        net.mask_layout = layout
    x_NCHW = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    together = net(x_NCHW) if layout == "dense" else net(x_NCHW, masks_NHW)
    for n in range(3):
        one = x_NCHW[n : n + 1]
        alone = net(one) if layout == "dense" else net(one, masks_NHW[n : n + 1])
        for whole, single in zip(together, alone, strict=True):
            assert relative_error(whole[n : n + 1], single) < 1e-12


@pytest.mark.parametrize("layout", MASKED_LAYOUTS)
def test_a_plan_equals_its_mask(layout, tiny_arch, randomize_grn, random_mask):
    net = build(randomize_grn, tiny_arch, mask_layout=layout, **OUTPUTS["pyramid"])
    x_NCHW = torch.randn(2, 3, 64, 96)
    mask_NHW = random_mask([4, 2], (2, 3))
    plan = VisibleCells.from_mask(mask_NHW)
    for from_plan, from_mask in zip(net(x_NCHW, plan), net(x_NCHW, mask_NHW), strict=True):
        assert torch.equal(from_plan, from_mask)


@pytest.mark.parametrize("layout", MASKED_LAYOUTS)
def test_interleaved_models_do_not_disturb_each_other(
    layout, tiny_arch, randomize_grn, random_mask
):
    first = build(randomize_grn, tiny_arch, mask_layout=layout, **OUTPUTS["pretraining"])
    second = randomize_grn(
        ConvNeXtV2(
            arch=dict(depths=[1, 2, 1, 1], channels=[4, 8, 12, 16]),
            mask_layout=layout,
            **OUTPUTS["pretraining"],
        ),
        seed=5,
    )
    x_NCHW, y_NCHW = torch.randn(2, 3, 64, 64), torch.randn(3, 3, 96, 64)
    mask_x, mask_y = random_mask([1, 3], (2, 2)), random_mask([2, 4, 5], (3, 2), seed=3)
    alone_first = forward_backward(first, x_NCHW, mask_x)
    alone_second = forward_backward(second, y_NCHW, mask_y)

    for net in (first, second):
        net.zero_grad()
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    (out_first,) = first(x_NCHW, mask_x)
    (out_second,) = second(y_NCHW, mask_y)
    first(x_NCHW)  # a dense call in between as well
    for out, generator in zip((out_first, out_second), generators, strict=True):
        weights = torch.randn(out.shape, generator=generator, dtype=torch.float64).float()
        (out * weights).sum().backward()

    assert torch.equal(out_first, alone_first[0][0])
    assert torch.equal(out_second, alone_second[0][0])
    for net, alone in ((first, alone_first), (second, alone_second)):
        for name, parameter in net.named_parameters():
            assert torch.equal(parameter.grad, alone[1][name]), name


def test_switching_the_layout_moves_no_parameter(tiny_arch):
    net = ConvNeXtV2(arch=tiny_arch, mask_layout="packed")
    before = {key: value.data_ptr() for key, value in net.state_dict().items()}
    net.mask_layout = "masked"
    assert net.mask_layout == "masked"
    assert before == {key: value.data_ptr() for key, value in net.state_dict().items()}


def test_packed_keeps_no_dense_activation_alive(tiny_arch, random_mask):
    """One visible cell of 64: what backward keeps is far below one dense map of the first stage."""
    net = ConvNeXtV2(arch=tiny_arch, mask_layout="packed", **OUTPUTS["pretraining"])
    x_NCHW = torch.randn(1, 3, 256, 256)
    mask_NHW = random_mask([1], (8, 8))
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() != x_NCHW.untyped_storage().data_ptr():
            saved[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = net(x_NCHW, mask_NHW)
    assert outputs[0].requires_grad and saved
    dense_first_stage = 8 * 64 * 64
    assert max(saved.values()) < dense_first_stage / 2
