"""The minkowski layout: the engine's convolutions over our parameters, and a clear word without it.

What holds for every layout (no leak, no batch effect, plans, zeros) is in test_layouts.py; here is
what could go wrong with this one.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import reference
import torch
from torch import Tensor, nn

from mmconvnextv2.nn import FCMAE, ConvNeXtV2, VisibleCells
from mmconvnextv2.nn.layouts import MinkowskiLayout
from mmconvnextv2.nn.layouts.minkowski import import_engine

pytestmark = pytest.mark.unit

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("MinkowskiEngine") is None,
    reason="needs MinkowskiEngine, which has to be compiled: requirements/minkowski.txt",
)

# Legend: N sample, C channel, H W pixels or cells.

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

CASES = {
    "one-cell-in-all": ((32, 32), [1]),
    "square-one-visible": ((64, 64), [1, 1]),
    "wide-unequal": ((64, 96), [5, 2]),
    "tall-unequal": ((96, 64), [1, 3, 6]),
    "recipe-224": ((224, 224), [19, 19]),
    "all-visible": ((96, 128), [12, 12]),
}

OUTPUTS = {
    "pretraining": dict(output_norms=False, gap_before_final_norm=False),
    "pyramid": dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False),
    "pooled": dict(gap_before_final_norm=True),
}

Error = Callable[[Tensor, Tensor], float]


def functional(features: tuple[Tensor, ...]) -> Tensor:
    """A fixed random linear functional."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(f.shape, generator=generator, dtype=torch.float64) for f in features]
    return sum((f * w.to(f)).sum() for f, w in zip(features, weights, strict=True))


def features_and_gradients(net: nn.Module, x_NCHW: Tensor, mask_NHW: Tensor) -> dict[str, Tensor]:
    """The feature maps, and the gradient of a functional of them in input and parameters."""
    net.zero_grad()
    x_NCHW = x_NCHW.clone().requires_grad_()
    features = net(x_NCHW, mask_NHW)
    functional(features).backward()
    results = {f"feature {i}": feature.detach() for i, feature in enumerate(features)}
    results |= {name: p.grad.clone() for name, p in net.named_parameters()}
    return results | {"input": x_NCHW.grad}


def assert_same(
    actual: dict[str, Tensor], expected: dict[str, Tensor], error: Error, tolerance: float
) -> None:
    assert actual.keys() == expected.keys()
    errors = {name: error(actual[name], value) for name, value in expected.items()}
    assert not {name: value for name, value in errors.items() if value > tolerance}


@needs_engine
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "fp64"])
@pytest.mark.parametrize("case", CASES)
def test_equals_masked(case, dtype, outputs, tiny_arch, randomize_grn, random_mask, relative_error):
    (height, width), visible = CASES[case]
    net = randomize_grn(ConvNeXtV2(arch=tiny_arch, **OUTPUTS[outputs])).to(dtype)
    x_NCHW = torch.randn(len(visible), 3, height, width, dtype=dtype)
    mask_NHW = random_mask(visible, (height // 32, width // 32))

    net.mask_layout = "masked"
    expected = features_and_gradients(net, x_NCHW, mask_NHW)
    net.mask_layout = "minkowski"
    actual = features_and_gradients(net, x_NCHW, mask_NHW)

    assert all(value.norm() > 0 for value in expected.values()), "a zero gradient tests nothing"
    assert_same(actual, expected, relative_error, TOLERANCE[dtype])


@needs_engine
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_agrees_with_the_reference(outputs, tiny_arch, randomize_grn, random_mask, relative_error):
    net = randomize_grn(ConvNeXtV2(arch=tiny_arch, mask_layout="minkowski", **OUTPUTS[outputs]))
    x_NCHW = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    mask_NHW = random_mask([2, 5], (2, 3))
    actual = features_and_gradients(net.double(), x_NCHW, mask_NHW)

    state = reference.in_float64(net.state_dict())
    x_NCHW.requires_grad_()
    stages = reference.encode(state, x_NCHW, mask_NHW, gap=outputs == "pooled")
    features = stages if outputs == "pyramid" else stages[-1:]
    functional(features).backward()
    expected = {f"feature {i}": feature.detach() for i, feature in enumerate(features)}
    expected |= {name: value.grad for name, value in state.items()} | {"input": x_NCHW.grad}
    assert_same(actual, expected, relative_error, 1e-10)


@needs_engine
def test_the_engine_does_every_convolution_but_the_stem(tiny_arch, random_mask, monkeypatch):
    engine = import_engine()
    calls = {"MinkowskiChannelwiseConvolution": 0, "MinkowskiConvolution": 0}

    def count(name: str) -> None:
        original = getattr(engine, name).forward

        def forward(self: nn.Module, *args: object) -> object:
            calls[name] += 1
            return original(self, *args)

        monkeypatch.setattr(getattr(engine, name), "forward", forward)

    for name in calls:
        count(name)
    net = ConvNeXtV2(arch=tiny_arch, mask_layout="minkowski")
    net(torch.randn(2, 3, 64, 64), random_mask([1, 2], (2, 2)))
    assert calls == {"MinkowskiChannelwiseConvolution": 5, "MinkowskiConvolution": 3}


@needs_engine
def test_an_engine_that_reorders_rows_is_followed(
    tiny_arch, randomize_grn, random_mask, relative_error, monkeypatch
):
    """On a CPU the engine keeps the order of its rows; nothing promises that it does elsewhere."""
    net = randomize_grn(ConvNeXtV2(arch=tiny_arch, **OUTPUTS["pyramid"])).double()
    x_NCHW = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    mask_NHW = random_mask([4, 1, 3], (2, 3))
    net.mask_layout = "masked"
    expected = features_and_gradients(net, x_NCHW, mask_NHW)

    manager = import_engine().CoordinateManager
    original = manager.insert_and_map

    def shuffled(self: object, coordinates: Tensor, *args: object) -> object:
        order = torch.randperm(len(coordinates))
        key, (unchanged, inverse) = original(self, coordinates[order].contiguous(), *args)
        return key, (order[unchanged.long()].int(), inverse)

    monkeypatch.setattr(manager, "insert_and_map", shuffled)
    net.mask_layout = "minkowski"
    actual = features_and_gradients(net, x_NCHW, mask_NHW)
    assert_same(actual, expected, relative_error, 1e-10)


@needs_engine
def test_bf16_autocast_is_no_further_from_float64_than_masked(
    tiny_arch, randomize_grn, random_mask, relative_error
):
    """Root mean square over draws, since one draw differs by luck."""
    totals: dict[str, dict[str, float]] = {"masked": {}, "minkowski": {}}
    for seed in range(4):
        net = randomize_grn(ConvNeXtV2(arch=tiny_arch, **OUTPUTS["pretraining"]), seed)
        x_NCHW, mask_NHW = torch.randn(3, 3, 64, 96), random_mask([2, 3, 6], (2, 3), seed)
        exact = copy.deepcopy(net).double()
        exact.mask_layout = "masked"
        wanted = features_and_gradients(exact, x_NCHW.double(), mask_NHW)
        for layout, total in totals.items():
            net.mask_layout = layout
            with torch.autocast("cpu", torch.bfloat16):
                results = features_and_gradients(net, x_NCHW, mask_NHW)
            for name, value in wanted.items():
                square = relative_error(results[name], value) ** 2
                total[name] = total.get(name, 0.0) + square
    for name, allowed in totals["masked"].items():
        assert 0 < totals["minkowski"][name] ** 0.5 < 2 * allowed**0.5, name


@needs_engine
def test_a_whole_model_in_bf16(tiny_arch, random_mask):
    net = ConvNeXtV2(arch=tiny_arch, mask_layout="minkowski", **OUTPUTS["pyramid"]).bfloat16()
    results = features_and_gradients(
        net, torch.randn(2, 3, 64, 64).bfloat16(), random_mask([1, 2], (2, 2))
    )
    for name, value in results.items():
        assert value.dtype == torch.bfloat16 and torch.isfinite(value).all(), name


@needs_engine
@pytest.mark.parametrize("wrap", ["checkpointed", "compiled"])
def test_a_recomputed_or_compiled_block_is_the_same(
    wrap, tiny_arch, randomize_grn, random_mask, relative_error
):
    plain = randomize_grn(
        ConvNeXtV2(arch=tiny_arch, mask_layout="minkowski", **OUTPUTS["pretraining"])
    ).double()
    other = copy.deepcopy(plain)
    if wrap == "checkpointed":
        other.with_cp = True
    else:
        for stage in other.stages:
            for block in stage:
                block.compile(backend="aot_eager", dynamic=False)
    x_NCHW = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    mask_NHW = random_mask([2, 5], (2, 3))
    expected = features_and_gradients(plain, x_NCHW, mask_NHW)
    actual = features_and_gradients(other, x_NCHW, mask_NHW)
    assert_same(actual, expected, relative_error, 1e-12)


@needs_engine
def test_a_training_step_equals_masked(tiny_arch, randomize_grn, random_mask, relative_error):
    model = randomize_grn(FCMAE.build(tiny_arch, decoder_channels=16)).double()
    x_NCHW = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    mask_NHW = random_mask([2, 3], (2, 3))
    results = {}
    for layout in ("masked", "minkowski"):
        model.backbone.mask_layout = layout
        model.zero_grad()
        loss = model(x_NCHW, mask=mask_NHW, mode="loss")["loss"]
        loss.backward()
        results[layout] = {name: p.grad.clone() for name, p in model.named_parameters()}
        results[layout]["loss"] = loss.detach()
    assert_same(results["minkowski"], results["masked"], relative_error, 1e-10)


@needs_engine
def test_nothing_of_the_process_is_changed(tiny_arch, random_mask):
    net = ConvNeXtV2(arch=tiny_arch)
    x_NCHW, mask_NHW = torch.randn(2, 3, 64, 64), random_mask([1, 2], (2, 2))
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        net.mask_layout = "minkowski"
        net(x_NCHW, mask_NHW)[-1].sum().backward()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not hasattr(collections, "Sequence")


@needs_engine
def test_a_gpu_is_refused_by_an_engine_without_one(random_mask):
    if import_engine().is_cuda_available():
        pytest.skip("this MinkowskiEngine was built with CUDA")
    on_gpu = SimpleNamespace(device=torch.device("cuda:1"))
    cells = dataclasses.replace(VisibleCells.from_mask(random_mask([1], (2, 2))), mask_NHW=on_gpu)
    with pytest.raises(RuntimeError, match="(?=.*minkowski)(?=.*cuda:1)(?=.*CPU only)"):
        MinkowskiLayout(cells)


@pytest.fixture
def without_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which MinkowskiEngine cannot be imported, whether it is installed or not."""
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    import_engine.cache_clear()
    yield
    import_engine.cache_clear()


REASON_AND_REMEDY = (
    r"(?=.*mask_layout='minkowski')(?=.*MinkowskiEngine)(?=.*libopenblas-dev)"
    r"(?=.*pip install --no-build-isolation .*MinkowskiEngine==0\.5\.4)(?=.*'packed')"
)


@pytest.mark.usefixtures("without_engine")
def test_asking_for_it_where_it_is_absent_names_the_reason_and_the_remedy(tiny_arch):
    with pytest.raises(ImportError, match=REASON_AND_REMEDY):
        ConvNeXtV2(arch=tiny_arch, mask_layout="minkowski")
    net = ConvNeXtV2(arch=tiny_arch)
    with pytest.raises(ImportError, match=REASON_AND_REMEDY) as caught:
        net.mask_layout = "minkowski"
    assert str(caught.value.__cause__) in str(caught.value)
    assert net.mask_layout == "packed"
    assert not hasattr(collections, "Sequence")


@pytest.mark.usefixtures("without_engine")
def test_other_layouts_do_not_need_it(tiny_arch, random_mask):
    net = ConvNeXtV2(arch=tiny_arch, mask_layout="masked", **OUTPUTS["pretraining"])
    x_NCHW, mask_NHW = torch.randn(1, 3, 64, 64), random_mask([2], (2, 2))
    (masked,) = net(x_NCHW, mask_NHW)
    net.mask_layout = "packed"
    (packed,) = net(x_NCHW, mask_NHW)
    torch.testing.assert_close(packed, masked)
