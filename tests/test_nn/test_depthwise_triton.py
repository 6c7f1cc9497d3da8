"""The Triton kernels against PyTorch's dense convolution, on a GPU or in Triton's interpreter.

The interpreter has to be switched on before Triton is imported. Where there is no GPU, a pytest of
its own runs this module under it.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmconvnextv2.nn import ConvNeXtV2, VisibleCells

triton = pytest.importorskip("triton", reason="needs Triton, which comes with torch for GPUs")

from mmconvnextv2.nn import depthwise_triton  # noqa: E402
from mmconvnextv2.nn.depthwise_triton import depthwise_through_table, neighbour_rows  # noqa: E402

pytestmark = pytest.mark.unit

# Legend: N sample, C channel, M visible cell, S positions along its side, H W rows and columns,
# T taps of the kernel, B = S + K - 1.

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs_kernels = pytest.mark.usefixtures("something_to_run_on", "few_weight_programs")

MASKS = {  # 1 is a visible cell
    "wide-unequal": [[[1, 1, 0], [0, 1, 0]], [[0, 1, 0], [0, 0, 1]]],
    "one-visible": [[[0, 0], [0, 1], [0, 0]]],
    "all-visible": [[[1], [1], [1]]],
    "nothing-around": [[[1, 0, 0, 0, 1]], [[0, 0, 1, 0, 0]]],
}

Gradients = tuple[Tensor, ...]


@pytest.mark.skipif(INTERPRETED, reason="is what started this process")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    child = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert child.returncode == 0 and " passed" in child.stdout, child.stdout + child.stderr


@pytest.fixture
def something_to_run_on() -> None:
    """A GPU, or the interpreter."""
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("no CUDA device: test_in_the_interpreter runs these in a process of its own")


@pytest.fixture
def few_weight_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several positions for a program, as in a real batch, and a rest at the end of the last."""
    monkeypatch.setattr(depthwise_triton, "WEIGHT_PROGRAMS", 7)


def plan(name: str) -> VisibleCells:
    return VisibleCells.from_mask(torch.tensor(MASKS[name], device=DEVICE) == 0)


def operands(num_cells: int, side: int, channels: int, kernel_size: int = 7) -> list[Tensor]:
    """Features, weight, bias and the gradient of the result, in float64."""
    cells_MSSC = torch.randn(num_cells, side, side, channels)
    weight = torch.randn(channels, 1, kernel_size, kernel_size)
    both = [cells_MSSC, weight, torch.randn(channels), torch.randn_like(cells_MSSC)]
    return [x.double().to(DEVICE) for x in both]


def visible_positions(cells: VisibleCells, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image, row and column of each position, to index a dense map with."""
    step = torch.arange(side, device=DEVICE)
    row_MS1 = (cells.row_M[:, None] * side + step)[:, :, None]
    column_M1S = (cells.column_M[:, None] * side + step)[:, None, :]
    return cells.image_M[:, None, None], row_MS1, column_M1S


def convolve_dense(
    cells: VisibleCells, cells_MSSC: Tensor, weight: Tensor, bias: Tensor, grad_MSSC: Tensor
) -> Gradients:
    """The result and all gradients by PyTorch's own convolution of the dense map."""
    inputs = [x.clone().requires_grad_() for x in (cells_MSSC, weight, bias)]
    side, channels = cells_MSSC.shape[2:]
    index = visible_positions(cells, side)
    dense_NHWC = cells_MSSC.new_zeros(*cells.grid(side), channels).index_put(index, inputs[0])
    padding = weight.shape[-1] // 2
    y_NCHW = F.conv2d(dense_NHWC.permute(0, 3, 1, 2), *inputs[1:], padding=padding, groups=channels)
    result = y_NCHW.permute(0, 2, 3, 1)[index]
    return result.detach(), *torch.autograd.grad(result, inputs, grad_MSSC)


def convolve_through_table(
    cells: VisibleCells, cells_MSSC: Tensor, weight: Tensor, bias: Tensor, grad_MSSC: Tensor
) -> Gradients:
    """The same by the kernels."""
    inputs = [x.clone().requires_grad_() for x in (cells_MSSC, weight, bias)]
    table = neighbour_rows(cells, cells_MSSC.shape[1], weight.shape[-1])
    result = depthwise_through_table(*inputs, table)
    return result.detach(), *torch.autograd.grad(result, inputs, grad_MSSC)


@runs_kernels
@pytest.mark.parametrize(("side", "channels"), [(8, 3), (4, 17), (2, 40), (1, 70)])
@pytest.mark.parametrize("mask", MASKS)
def test_equals_the_dense_convolution(mask, side, channels, relative_error):
    cells = plan(mask)
    given = operands(cells.num_visible, side, channels)
    expected = convolve_dense(cells, *given)
    actual = convolve_through_table(cells, *given)
    assert all(x.norm() > 0 for x in expected)
    assert max(map(relative_error, actual, expected)) < 1e-14


@runs_kernels
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_other_kernels(kernel_size, relative_error):
    cells = plan("wide-unequal")
    given = operands(cells.num_visible, 2, 5, kernel_size)
    expected = convolve_dense(cells, *given)
    actual = convolve_through_table(cells, *given)
    assert max(map(relative_error, actual, expected)) < 1e-14


@runs_kernels
def test_equals_loops(relative_error):
    """Result, table and gradients by counting on the fingers."""
    side, reach = 2, 3
    cells = plan("wide-unequal")
    cells_MSSC, weight, bias, grad_MSSC = operands(cells.num_visible, side, 2)
    row_of = {}
    for m in range(cells.num_visible):
        for r, c in itertools.product(range(side), repeat=2):
            y, x = cells.row_M[m].item() * side + r, cells.column_M[m].item() * side + c
            row_of[cells.image_M[m].item(), y, x] = len(row_of)
    x_PC, grad_PC = cells_MSSC.flatten(0, 2), grad_MSSC.flatten(0, 2)
    result_PC = bias.repeat(len(row_of), 1)
    grad_x_PC, grad_weight = torch.zeros_like(x_PC), torch.zeros_like(weight)
    for (n, y, x), p in row_of.items():
        for i, j in itertools.product(range(7), repeat=2):
            q = row_of.get((n, y + i - reach, x + j - reach))
            if q is not None:
                result_PC[p] += x_PC[q] * weight[:, 0, i, j]
                grad_x_PC[q] += grad_PC[p] * weight[:, 0, i, j]
                grad_weight[:, 0, i, j] += grad_PC[p] * x_PC[q]
    expected = [
        result_PC.view_as(cells_MSSC),
        grad_x_PC.view_as(cells_MSSC),
        grad_weight,
        grad_PC.sum(0),
    ]
    actual = convolve_through_table(cells, cells_MSSC, weight, bias, grad_MSSC)
    assert max(map(relative_error, actual, expected)) < 1e-14

    table_MBB = neighbour_rows(cells, side)
    for m in range(cells.num_visible):
        top, left = cells.row_M[m].item() * side - reach, cells.column_M[m].item() * side - reach
        for i, j in itertools.product(range(side + 6), repeat=2):
            where = (cells.image_M[m].item(), top + i, left + j)
            assert table_MBB[m, i, j] == row_of.get(where, -1)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_further_from_float64_than_plain_pytorch(dtype, relative_error):
    """Root mean square over draws, since one draw differs by luck."""
    cells, draws = plan("wide-unequal"), 3
    ours, plain = torch.zeros(4), torch.zeros(4)
    for _ in range(draws):
        rounded = [x.to(dtype) for x in operands(cells.num_visible, 2, 16)]
        exact = convolve_dense(cells, *(x.double() for x in rounded))
        for total, results in (
            (ours, convolve_through_table(cells, *rounded)),
            (plain, convolve_dense(cells, *rounded)),
        ):
            assert all(x.dtype == dtype for x in results)
            total += torch.tensor(list(map(relative_error, results, exact))) ** 2 / draws
    # Storing bfloat16, the interpreter cuts off where a GPU rounds: by itself twice the error.
    factor = 3 if INTERPRETED and dtype == torch.bfloat16 else 2
    assert (ours.sqrt() <= factor * plain.sqrt()).all(), (ours.sqrt(), plain.sqrt())


class NanAround:
    """Tensors in the middle of memory that is NaN, and that stays so if nobody writes there."""

    margin = 4096

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def new(
        self, *size: int | torch.Size, dtype: torch.dtype, fill: float = float("nan")
    ) -> Tensor:
        """Allocate; the tensor itself is NaN as well."""
        shape = torch.Size(size[0] if isinstance(size[0], torch.Size) else size)
        total = shape.numel() + 2 * self.margin
        self.buffers.append(torch.full((total,), fill, dtype=dtype, device=DEVICE))
        return self.buffers[-1][self.margin : -self.margin].view(shape)

    def copy(self, x: Tensor, fill: float = float("nan")) -> Tensor:
        return self.new(x.shape, dtype=x.dtype, fill=fill).copy_(x)

    def untouched(self) -> bool:
        """Whether all that lies around is as it was."""
        around = (torch.cat([b[: self.margin], b[-self.margin :]]) for b in self.buffers)
        return all((x.isnan() | (x == x[0])).all() for x in around)


@runs_kernels
@pytest.mark.parametrize(("side", "channels"), [(8, 3), (2, 40), (1, 70)])
def test_reads_and_writes_only_what_is_there(side, channels, monkeypatch):
    memory, cells = NanAround(), plan("wide-unequal")
    cells_MSSC, weight, bias, grad_MSSC = map(
        memory.copy, operands(cells.num_visible, side, channels)
    )
    # What lies around the table points to the NaN behind the last row of the features.
    table_MBB = memory.copy(neighbour_rows(cells, side), fill=cells.num_visible * side**2)
    weight_TC = memory.copy(weight.flatten(1).t())
    allocate = torch.Tensor.new_empty

    def new_empty(self: Tensor, *size: int | torch.Size, **options: Any) -> Tensor:
        if "device" in options:  # the interpreter's own
            return allocate(self, *size, **options)
        return memory.new(*size, dtype=options.get("dtype", self.dtype))

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    for given in (bias, None):
        result = depthwise_triton._convolve(cells_MSSC, weight_TC, given, table_MBB)
        assert result.isfinite().all()
    partial = depthwise_triton._weight_gradient(cells_MSSC, grad_MSSC, table_MBB)
    assert partial.isfinite().all()
    assert len(memory.buffers) == 9 and memory.untouched()


@runs_kernels
def test_computes_only_what_is_asked_for():
    cells = plan("wide-unequal")
    table = neighbour_rows(cells, 1)
    for wanted in range(3):
        inputs = [x.requires_grad_(i == wanted) for i, x in enumerate(operands(5, 1, 3)[:3])]
        depthwise_through_table(*inputs, table).sum().backward()
        assert [x.grad is not None for x in inputs] == [i == wanted for i in range(3)]


@runs_kernels
def test_repeats_bit_by_bit_whatever_the_strides():
    cells = plan("wide-unequal")
    given = [x.float() for x in operands(cells.num_visible, 2, 40)]
    strided = [x.movedim(-1, 1).contiguous().movedim(1, -1) for x in (given[0], given[3])]
    assert not strided[0].is_contiguous()
    first = convolve_through_table(cells, *given)
    second = convolve_through_table(cells, strided[0], *given[1:3], strided[1])
    assert all(map(torch.equal, first, second))


@runs_kernels
def test_a_compiled_caller_sees_two_operators(relative_error):
    cells = plan("wide-unequal")
    *inputs, grad_MSSC = operands(cells.num_visible, 2, 5)
    inputs = [x.requires_grad_() for x in inputs]
    table = neighbour_rows(cells, 2)

    def call(convolve: Callable[..., Tensor]) -> Gradients:
        result = convolve(*inputs, table)
        return result, *torch.autograd.grad(result, inputs, grad_MSSC)

    compiled = torch.compile(depthwise_through_table, backend="aot_eager", fullgraph=True)
    assert max(map(relative_error, call(compiled), call(depthwise_through_table))) < 1e-14
    with FlopCounterMode(display=False) as counter:
        call(compiled)
    assert counter.get_total_flops() == 3 * 2 * 49 * inputs[0].numel()

    checks = ("test_schema", "test_faketensor")
    cells_MSSC, weight = (x.detach() for x in inputs[:2])
    weight_TC = depthwise_triton._by_tap(weight)
    ops = torch.ops.mmconvnextv2
    torch.library.opcheck(
        ops.convolve_visible, (cells_MSSC, weight_TC, None, table), test_utils=checks
    )
    torch.library.opcheck(
        ops.convolve_visible_weight_gradient, (cells_MSSC, grad_MSSC, table), test_utils=checks
    )


@runs_kernels
def test_two_dtypes_are_refused():
    cells = plan("one-visible")
    cells_MSSC, weight, bias, _ = operands(1, 1, 3)
    with pytest.raises(TypeError, match="one dtype, got torch.float32 and torch.float64"):
        depthwise_through_table(cells_MSSC.float(), weight, bias, neighbour_rows(cells, 1))


@pytest.mark.skipif(INTERPRETED, reason="compiles, which the interpreter does not")
@pytest.mark.parametrize("channels", [40, 96])
def test_compiles_without_a_gpu_to_whole_vectors(channels, tmp_path, monkeypatch):
    """16 bytes a read for the narrowest network too, and no registers spilt to memory."""
    pytest.importorskip("triton", "3.3", reason="its compiler is called in another way before")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = depthwise_triton._convolve_kernel
    block_c = depthwise_triton._channel_block(channels)
    constants = dict(C=channels, S=8, K=7, SUM_DTYPE=triton.language.float32)
    constants |= dict(BLOCK_P=depthwise_triton.BLOCK_SIZE // block_c, BLOCK_C=block_c)
    pointers = dict(x_ptr="*bf16", weight_ptr="*bf16", bias_ptr="*bf16", result_ptr="*bf16")
    signature = pointers | dict(table_ptr="*i32", num_positions="i32")
    names = kernel.arg_names
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in (*pointers, "table_ptr")}
    source = ASTSource(
        kernel,
        {n: signature.get(n, "constexpr") for n in names},
        {(names.index(n),): value for n, value in constants.items()},
        aligned,
    )
    ptx = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
    reads = [line for line in ptx.splitlines() if "ld.global" in line]
    assert sum(".v4.b32" in line for line in reads) >= 2 * 7
    assert ".local" not in ptx


@runs_kernels
def test_the_layout_agrees_with_masked(tiny_arch, random_mask, randomize_grn, relative_error):
    net = randomize_grn(ConvNeXtV2(tiny_arch, gap_before_final_norm=False)).to(DEVICE)
    mask_NHW, x_NCHW = random_mask([1, 2], (1, 3)).to(DEVICE), torch.randn(2, 3, 32, 96).to(DEVICE)
    results = []
    for layout in ("masked", "triton"):
        net.mask_layout = layout
        net.zero_grad()
        (feature,) = net(x_NCHW, mask_NHW)
        feature.square().sum().backward()
        results.append([feature.detach(), *(p.grad.clone() for p in net.parameters())])
    assert max(relative_error(b, a) for a, b in zip(*results, strict=True)) < 1e-5


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes the CPU for a GPU")
def test_the_layout_refuses_a_cpu(tiny_arch, random_mask):
    net = ConvNeXtV2(tiny_arch, mask_layout="triton")
    with pytest.raises(RuntimeError, match="computes on GPUs and is called on the CPU"):
        net(torch.randn(1, 3, 32, 64), random_mask([1], (1, 2)))


def test_the_layout_without_triton_says_what_is_missing(tiny_arch, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install triton"):
        ConvNeXtV2(tiny_arch, mask_layout="triton")
