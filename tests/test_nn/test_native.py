"""The C++ kernels against PyTorch in float64, and what happens where they cannot be compiled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmconvnextv2.nn import ConvNeXtV2, VisibleCells, native
from mmconvnextv2.nn.native import compiler

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(native.library() is None, reason="no C++ compiler that knows OpenMP"),
]

# Legend: N image, M visible cell, S position along the side of a cell, P position of an image,
# R row (position of the batch), T tap, C and K channels.


def scatter(rows_RC: Tensor, positions: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Dense map ``(N, C, H, W)`` with zeros where nothing is visible."""
    batch, height, width = grid
    dense = rows_RC.new_zeros(batch * height * width, rows_RC.shape[1])
    dense = dense.index_put((positions,), rows_RC)
    return dense.view(batch, height, width, -1).permute(0, 3, 1, 2)


def convolve(rows_RC: Tensor, weight: Tensor, bias: Tensor, cells: VisibleCells, side: int):
    """Scatter, PyTorch's convolution, gather."""
    positions = cells.positions[side]
    x_NCHW = scatter(rows_RC, positions, cells.grid(side))
    y_NCHW = F.conv2d(x_NCHW, weight, bias, padding=3, groups=len(weight))
    return y_NCHW.permute(0, 2, 3, 1).flatten(0, 2)[positions]


@pytest.mark.parametrize("channels", [5, 16, 40])
@pytest.mark.parametrize("side", [8, 4, 2, 1])
@pytest.mark.parametrize("counts", [[3, 3], [1, 12], [12, 12]], ids=str)
def test_convolution_and_gradients(counts, side, channels, random_mask, relative_error):
    cells = VisibleCells.from_mask(random_mask(counts, (3, 4)))
    _, height, width = cells.grid(side)
    rows_RC = torch.randn(cells.num_visible * side**2, channels)
    weight, bias = torch.randn(channels, 1, 7, 7), torch.randn(channels)
    place = (cells.offsets * side**2, cells.positions[side], height, width, side)
    result = native.depthwise_rows(rows_RC, weight, bias, *place, flip=False)

    grad_RC = torch.randn_like(result)
    taps_TC = native.depthwise_rows_grad(rows_RC, grad_RC, *place)
    actual = [
        result,
        native.depthwise_rows(grad_RC, weight, None, *place, flip=True),
        taps_TC[:49].t().reshape(weight.shape),
        taps_TC[49],
    ]

    def by_torch(dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in (rows_RC, weight, bias)]
        wanted = convolve(*inputs, cells, side)
        return [wanted, *torch.autograd.grad(wanted, inputs, grad_RC.to(dtype))]

    exact = by_torch(torch.float64)
    for ours, plain, wanted in zip(actual, by_torch(torch.float32), exact, strict=True):
        # A sum of a few terms may be exact by luck in one way and not in the other.
        allowed = max(2 * relative_error(plain, wanted), 3e-7)
        assert relative_error(ours, wanted) <= allowed


@pytest.mark.parametrize("width", [1, 2, 5, 7, 12, 16])
def test_whole_maps_of_any_width(width, relative_error):
    batch, height, channels = 2, 3, 9
    x_NHWC = torch.randn(batch, height, width, channels)
    weight = torch.randn(channels, 1, 7, 7)
    run = max(run for run in native.RUNS if width % run == 0)
    offsets = torch.arange(batch + 1) * height * width
    rows_RC = native.depthwise_rows(
        x_NHWC.flatten(0, 2), weight, None, offsets, None, height, width, run, flip=False
    )
    x_NCHW = x_NHWC.permute(0, 3, 1, 2).double()
    wanted = F.conv2d(x_NCHW, weight.double(), padding=3, groups=channels).permute(0, 2, 3, 1)
    assert relative_error(rows_RC.view(x_NHWC.shape), wanted) < 1e-6


def test_the_number_of_threads_changes_nothing(random_mask):
    cells = VisibleCells.from_mask(random_mask([5, 7, 2], (3, 4)))
    rows_RC, grad_RC = torch.randn(2, cells.num_visible * 16, 48)
    place = (cells.offsets * 16, cells.positions[4], 12, 16, 4)
    bias = torch.randn(48)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            out_NPK = torch.empty(2, len(rows_RC) // 2, 48)
            squares_NK = native.gelu_square_sum(rows_RC.view(out_NPK.shape), bias, out_NPK)
            results.append([native.depthwise_rows_grad(rows_RC, grad_RC, *place), squares_NK])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 200, 16), (3, 5, 36)], ids=str)
def test_gelu_and_what_grn_needs_of_it(shape, relative_error):
    hidden_NPK = torch.randn(shape) * 3
    grad_NPK, (factor_NK, through_NK) = torch.randn(shape), torch.randn(2, shape[0], shape[2])
    bias, shift = torch.randn(2, shape[2])
    gelu, again, slope, scaled = torch.full((4, *shape), torch.nan)
    squares_NK = native.gelu_square_sum(hidden_NPK, bias, gelu)
    native.gelu_again(hidden_NPK, bias, factor_NK, shift, again, slope, scaled)
    grad_hidden = slope.clone()
    sums_NK = native.gelu_grn_grad(grad_NPK, again, factor_NK, through_NK, grad_hidden)
    products_NK = native.product_sum(grad_NPK, hidden_NPK)
    actual = [gelu, again, slope, scaled, grad_hidden, squares_NK, sums_NK, products_NK]

    def by_torch(dtype: torch.dtype) -> list[Tensor]:
        x_NPK = (hidden_NPK.to(dtype) + bias.to(dtype)).requires_grad_()
        y_NPK = F.gelu(x_NPK)
        (slope,) = torch.autograd.grad(y_NPK.sum(), x_NPK, retain_graph=True)
        factor_N1K, through_N1K = (x.to(dtype)[:, None] for x in (factor_NK, through_NK))
        scaled = y_NPK * factor_N1K + shift.to(dtype)
        upstream = grad_NPK.to(dtype) * factor_N1K + y_NPK.detach() * through_N1K
        (grad,) = torch.autograd.grad(y_NPK, x_NPK, upstream)
        products_NK = (grad_NPK.to(dtype) * hidden_NPK.to(dtype)).sum(dim=1)
        squares_NK = y_NPK.square().sum(dim=1)
        return [y_NPK, y_NPK, slope, scaled, grad, squares_NK, grad.sum(dim=1), products_NK]

    exact = by_torch(torch.float64)
    for ours, plain, wanted in zip(actual, by_torch(torch.float32), exact, strict=True):
        allowed = max(2 * relative_error(plain, wanted), 3e-7)
        assert relative_error(ours, wanted) <= allowed


def test_gelu_everywhere():
    """Close to zero, far out on both sides, and NaN, which must not get lost."""
    x = torch.cat([torch.linspace(-20, 20, 40_001), torch.tensor([0.0, -0.0, 1e-30, 1e30, -1e30])])
    out = torch.empty(1, len(x), 1)
    native.gelu_square_sum(x[None, :, None], torch.zeros(1), out)
    wanted = F.gelu(x.double())
    error = (out[0, :, 0] - wanted).abs() / wanted.abs().clamp(min=1e-6)
    assert error.max() < 1e-6
    out = torch.empty(1, 2, 1)
    squares = native.gelu_square_sum(torch.tensor([[[1.0], [torch.nan]]]), torch.zeros(1), out)
    assert out.isnan().tolist() == [[[False], [True]]]
    assert squares.isnan().all()


def test_the_convolution_shows_in_a_count_of_flops(random_mask):
    cells = VisibleCells.from_mask(random_mask([2], (2, 2)))
    rows_RC, weight = torch.randn(2 * 4, 3), torch.randn(3, 1, 7, 7)
    place = (cells.offsets * 4, cells.positions[2], 4, 4, 2)
    with FlopCounterMode(display=False) as counter:
        native.depthwise_rows(rows_RC, weight, None, *place, flip=False)
        native.depthwise_rows_grad(rows_RC, rows_RC, *place)
    assert counter.get_total_flops() == 2 * (2 * 8 * 3 * 49)


@pytest.fixture
def fresh_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing is compiled yet; the cache is an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.library.cache_clear()
    yield tmp_path / "cache" / "mmconvnextv2"
    native.library.cache_clear()


def run_encoder(net: ConvNeXtV2, mask_NHW: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    x_NCHW = torch.randn(len(mask_NHW), 3, 64, 96, requires_grad=True)
    feature = net(x_NCHW, mask_NHW)[-1]
    net.zero_grad()
    feature.square().sum().backward()
    return [feature.detach(), x_NCHW.grad, *(p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize("reason", ["missing", "failing"])
@pytest.mark.usefixtures("fresh_library")
def test_without_a_compiler_it_says_so_and_computes_the_same(
    reason, tmp_path, tiny_arch, random_mask, randomize_grn, relative_error, monkeypatch
):
    net = randomize_grn(ConvNeXtV2(tiny_arch, gap_before_final_norm=False, mask_layout="packed"))
    mask_NHW = random_mask([2, 2], (2, 3))
    expected = run_encoder(net, mask_NHW)
    assert native.library() is not None

    native.library.cache_clear()
    fake = tmp_path / "c++"
    if reason == "failing":
        fake.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "no OpenMP" >&2; exit 1; }\n')
        fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.warns(UserWarning, match="slower way.*(No such file|no OpenMP)"):
        actual = run_encoder(net, mask_NHW)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < 1e-5


def test_compiles_once_and_leaves_nothing_else(fresh_library):
    source = Path(native.__file__).with_name("kernels.cpp")
    compiler.compile_library(source)
    (library,) = fresh_library.iterdir()
    written = library.stat().st_mtime_ns
    compiler.compile_library(source)
    assert library.stat().st_mtime_ns == written


def test_another_source_is_another_library(fresh_library, tmp_path):
    for number in (1, 2):
        source = tmp_path / "same_name.cpp"
        source.write_text(f'extern "C" int number() {{ return {number}; }}\n')
        assert compiler.compile_library(source).number() == number
    assert len(list(fresh_library.iterdir())) == 2


def test_processes_may_compile_at_the_same_time(fresh_library):
    code = "from mmconvnextv2.nn import native; raise SystemExit(native.library() is None)"
    runs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert [path.suffix for path in fresh_library.iterdir()] == [".so"]
