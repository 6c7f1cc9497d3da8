"""The minkowski layout: cells stored as packed stores them, convolved by MinkowskiEngine.

The official sparse encoder runs on this engine. Here it is an option for parity and comparison:
the depthwise convolution and the downsampling are the engine's, over the network's own parameters.
The stem is no sparse operation there either, and what is pointwise works on plain rows of
features in both. The official code needs a fork whose depthwise convolution exists on GPUs only;
`MinkowskiChannelwiseConvolution` of the released 0.5.4 computes the same everywhere, by a loop
over the 49 positions of the kernel. MinkowskiEngine is imported when the layout is asked for,
never before.

Shape suffixes: P visible positions of the batch, K positions of a kernel, C and D channels.
"""

from __future__ import annotations

import collections
import collections.abc
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmconvnextv2.nn.cells import STAGE_SIDES, VisibleCells
from mmconvnextv2.nn.layouts.packed import PackedLayout

INSTALL_COMMAND = (
    "pip install --no-build-isolation "
    "--config-settings='--global-option=--cpu_only --blas=openblas' MinkowskiEngine==0.5.4"
)


class MinkowskiLayout(PackedLayout):
    """Features ``(M, s, s, C)`` of the visible cells; MinkowskiEngine looks across positions.

    The engine computes in float32 or float64, so lower precisions, autocast's included, are
    converted before each of its convolutions and the result back to the dtype of the features.
    With several threads it adds in an order that changes from run to run: gradients of its
    kernels repeat to rounding only.

    Args:
        cells: plan of the batch.

    Raises:
        ImportError: MinkowskiEngine cannot be imported.
        RuntimeError: the mask is on a GPU, and MinkowskiEngine was built for the CPU only.
    """

    def __init__(self, cells: VisibleCells) -> None:
        super().__init__(cells)
        self.engine = import_engine()
        device = cells.mask_NHW.device
        if device.type == "cuda" and not self.engine.is_cuda_available():
            raise RuntimeError(
                f"mask_layout='minkowski' is called on {device}, but this MinkowskiEngine was "
                f"built for the CPU only; move model and images to the CPU, set "
                f"mask_layout='packed', or build it with CUDA (requirements/minkowski.txt)"
            )
        map_type = self.engine.CoordinateMapType
        # 0 leaves the number of threads alone; the default would set it for the whole process.
        self.manager = self.engine.CoordinateManager(
            D=2,
            num_threads=0,
            coordinate_map_type=map_type.CUDA if device.type == "cuda" else map_type.CPU,
        )
        self.maps = {side: self._insert(side) for side in STAGE_SIDES}

    @classmethod
    def check_available(cls) -> None:
        """See `Layout.check_available`."""
        import_engine()

    # Dynamo would trace the engine's Python in pieces, and again for every number of positions.
    @torch.compiler.disable
    def downsample(self, features: Tensor, conv: nn.Conv2d) -> Tensor:
        """See `Layout.downsample`."""
        convolution = _without_parameters("MinkowskiConvolution")(
            conv.in_channels,
            conv.out_channels,
            kernel_size=conv.kernel_size[0],
            stride=conv.stride[0],
            bias=conv.bias is not None,
            dimension=2,
        )
        kernel_KCD = conv.weight.permute(2, 3, 1, 0).flatten(0, 1)
        return self._convolve(convolution, kernel_KCD, conv.bias, features, features.shape[1] // 2)

    @torch.compiler.disable
    def depthwise(self, features: Tensor, conv: nn.Conv2d) -> Tensor:
        """See `Layout.depthwise`."""
        convolution = _without_parameters("MinkowskiChannelwiseConvolution")(
            conv.in_channels,
            kernel_size=conv.kernel_size[0],
            bias=conv.bias is not None,
            dimension=2,
        )
        kernel_KC = conv.weight.flatten(1).T
        return self._convolve(convolution, kernel_KC, conv.bias, features, features.shape[1])

    def _convolve(
        self,
        convolution: nn.Module,
        kernel: Tensor,
        bias: Tensor | None,
        features: Tensor,
        out_side: int,
    ) -> Tensor:
        in_key, in_order_P = self.maps[features.shape[1]]
        out_key, out_order_P = self.maps[out_side]
        dtype = torch.promote_types(features.dtype, torch.float32)
        parameters = {"kernel": kernel.to(dtype).contiguous()}
        if bias is not None:
            parameters["bias"] = bias.to(dtype)[None]

        rows_PC = features.flatten(0, 2).to(dtype)
        if in_order_P is not None:
            rows_PC = rows_PC[in_order_P]
        sparse = self.engine.SparseTensor(
            rows_PC, coordinate_map_key=in_key, coordinate_manager=self.manager
        )
        convolved = functional_call(convolution, parameters, (sparse, out_key))
        assert convolved.coordinate_map_key == out_key
        rows_PD = convolved.F
        if out_order_P is not None:
            rows_PD = rows_PD[out_order_P.argsort()]
        shape = (self.cells.num_visible, out_side, out_side, rows_PD.shape[1])
        return rows_PD.view(shape).to(features.dtype)

    def _insert(self, side: int) -> tuple[Any, Tensor | None]:
        """Tell the engine the positions of one stage.

        Returns:
            The engine's key of them, and for each of the engine's rows which of ours it is; None
            in place of the latter where the engine keeps our order, as it does on a CPU.
        """
        _, height, width = self.cells.grid(side)
        stride = STAGE_SIDES[0] // side
        position_P = self.cells.positions[side]
        image_P = position_P // (height * width)
        row_P, column_P = position_P // width % height, position_P % width
        # In the engine's kernels the first axis runs fastest, in PyTorch's the last: with columns
        # first, the two number the positions of a kernel alike.
        coordinates_P3 = torch.stack([image_P, column_P * stride, row_P * stride], dim=1).int()
        key, (order_P, _) = self.manager.insert_and_map(coordinates_P3, [stride, stride])
        order_P = order_P.long()
        unchanged_P = torch.arange(len(position_P), device=order_P.device)
        return key, None if torch.equal(order_P, unchanged_P) else order_P


@functools.cache
def import_engine() -> ModuleType:
    """Import MinkowskiEngine.

    Raises:
        ImportError: it cannot be imported; the message says why and how to install it.
    """
    try:
        with _old_collections():
            import MinkowskiEngine
    except ImportError as error:
        raise ImportError(
            f"mask_layout='minkowski' needs MinkowskiEngine, which cannot be imported: {error}. "
            f"It compiles against the installed torch, with a C++ compiler and OpenBLAS (Debian: "
            f"`apt-get install g++ libopenblas-dev`): `{INSTALL_COMMAND}`; requirements/"
            f"minkowski.txt explains it. mask_layout='packed' computes the same without it."
        ) from error
    return MinkowskiEngine


@contextmanager
def _old_collections() -> Iterator[None]:
    """Offer `collections.Sequence` while MinkowskiEngine is being imported.

    MinkowskiEngine 0.5.4 takes it from there, where Python 3.10 removed it. It is gone again
    afterwards, since other packages tell old Pythons by it.
    """
    if hasattr(collections, "Sequence"):
        yield
        return
    collections.Sequence = collections.abc.Sequence  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del collections.Sequence  # type: ignore[attr-defined]


@functools.cache
def _without_parameters(name: str) -> Any:
    """One of the engine's convolutions, to be called with parameters that are not its own.

    Its constructor would draw initial values, and so move the random state of the process.
    """
    return type(
        name,
        (getattr(import_engine(), name),),
        {"reset_parameters": lambda self, is_transpose=False: None},
    )
