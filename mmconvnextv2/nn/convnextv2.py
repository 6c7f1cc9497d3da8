"""ConvNeXt V2 as a plain module whose forward pass takes an optional mask.

Shape suffixes: N batch, C channels, H and W pixels of an image or cells of a mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmconvnextv2.nn.arguments import check_count, is_whole_number
from mmconvnextv2.nn.block import Block
from mmconvnextv2.nn.cells import CELL_SIZE, VisibleCells
from mmconvnextv2.nn.init import init_weights
from mmconvnextv2.nn.layouts import MASK_LAYOUTS, DenseLayout, Layout, check_mask_layout
from mmconvnextv2.nn.response_norms import ResponseNormConfig

ARCHITECTURES: dict[str, dict[str, tuple[int, ...]]] = {
    "atto": dict(depths=(2, 2, 6, 2), channels=(40, 80, 160, 320)),
    "femto": dict(depths=(2, 2, 6, 2), channels=(48, 96, 192, 384)),
    "pico": dict(depths=(2, 2, 6, 2), channels=(64, 128, 256, 512)),
    "nano": dict(depths=(2, 2, 8, 2), channels=(80, 160, 320, 640)),
    "tiny": dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768)),
    "base": dict(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)),
    "large": dict(depths=(3, 3, 27, 3), channels=(192, 384, 768, 1536)),
    "huge": dict(depths=(3, 3, 27, 3), channels=(352, 704, 1408, 2816)),
}
"""Blocks and channels of the four stages (paper, appendix A.1)."""

Arch = str | Mapping[str, Sequence[int]]
"""A name of `ARCHITECTURES`, or ``dict(depths=..., channels=...)`` with four numbers each."""


class ConvNeXtV2(nn.Module):
    """ConvNeXt V2 (https://arxiv.org/abs/2301.00808), dense or on visible cells only.

    ``net(x)`` is the dense network of a classifier or detector. ``net(x, mask)`` is the sparse
    encoder of FCMAE: the same parameters, with every result that of a submanifold sparse
    convolution, so nothing of a removed cell reaches the features of a visible one.

    The state_dict has the keys and shapes of mmpretrain's ``ConvNeXt(use_grn=True,
    layer_scale_init_value=0.)``. Weights are initialised here, once, as truncated normal of
    standard deviation 0.02 with zero biases.

    Args:
        arch: a name of `ARCHITECTURES`, or ``dict(depths=..., channels=...)``.
        in_channels: channels of the images.
        out_indices: stages to return, 0 to 3; negative numbers count from the last.
        drop_path_rate: drop path of the last block; it grows linearly from 0 at the first.
        gap_before_final_norm: average over positions before the output norms, and return
            ``(N, C)`` in place of feature maps, as a classifier wants.
        output_norms: apply a LayerNorm to each returned stage. FCMAE pre-trains without them.
        with_cp: activation checkpointing: recompute each block in the backward pass.
        mask_layout: where visible cells live in a masked call, a name of `MASK_LAYOUTS`.
        use_grn: V2's GRN; False for V1.
        layer_scale_init_value: start of V1's LayerScale, 1e-6 there; 0 for none, as in V2.
        response_norm: what stands in GRN's place in every block, for ablations: a name of
            `mmconvnextv2.nn.response_norms.RESPONSE_NORMS`, or ``dict(type=name, ...)``. It needs
            the layout "masked" in masked calls. None for GRN itself.

    Raises:
        ValueError: an argument is outside what is allowed.
        ImportError: `mask_layout` needs a library that cannot be imported.
    """

    def __init__(
        self,
        arch: Arch = "tiny",
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        drop_path_rate: float = 0.0,
        gap_before_final_norm: bool = True,
        output_norms: bool = True,
        with_cp: bool = False,
        mask_layout: str = "packed",
        use_grn: bool = True,
        layer_scale_init_value: float = 0.0,
        response_norm: ResponseNormConfig | None = None,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        scale = layer_scale_init_value
        if not (isinstance(scale, int | float) and 0 <= scale < math.inf):
            raise ValueError(f"layer_scale_init_value must be 0 (none) or positive, got {scale!r}")
        self.in_channels = in_channels
        self.depths, self.channels = resolve_arch(arch)
        self.out_indices = _resolve_out_indices(out_indices, len(self.depths))
        self.gap_before_final_norm = gap_before_final_norm
        self.with_cp = with_cp
        self.mask_layout = mask_layout
        if not (isinstance(drop_path_rate, int | float) and 0 <= drop_path_rate < 1):
            raise ValueError(f"drop_path_rate must lie in [0, 1), got {drop_path_rate!r}")

        last_block = max(sum(self.depths) - 1, 1)
        self.downsample_layers = nn.ModuleList([Stem(in_channels, self.channels[0])])
        self.stages = nn.ModuleList()
        for i, (depth, num_channels) in enumerate(zip(self.depths, self.channels, strict=True)):
            if i > 0:
                self.downsample_layers.append(Downsample(self.channels[i - 1], num_channels))
            first = sum(self.depths[:i])
            rates = [drop_path_rate * (first + j) / last_block for j in range(depth)]
            blocks = [
                Block(num_channels, r, use_grn, layer_scale_init_value, response_norm)
                for r in rates
            ]
            self.stages.append(Stage(blocks))
            if output_norms and i in self.out_indices:
                self.add_module(f"norm{i}", nn.LayerNorm(num_channels, eps=1e-6))
        self.apply(init_weights)

    @property
    def mask_layout(self) -> str:
        """Name of the layout that masked calls use; may be assigned."""
        return self._mask_layout

    @mask_layout.setter
    def mask_layout(self, name: str) -> None:
        check_mask_layout(name)
        self._mask_layout = name

    def forward(
        self, x_NCHW: Tensor, mask: Tensor | VisibleCells | None = None
    ) -> tuple[Tensor, ...]:
        """Compute the features of the stages in `out_indices`.

        Args:
            x_NCHW: images ``(N, in_channels, H, W)``, normalised. With a mask, H and W must be
                multiples of 32; without, any size of at least 32 pixels.
            mask: boolean ``(N, H / 32, W / 32)``, True where a cell is removed, or a plan made by
                `VisibleCells.from_mask`; None for the dense network.

        Returns:
            One contiguous ``(N, C_i, H / s_i, W / s_i)`` a stage with s_i = 4, 8, 16, 32, zero
            where cells are removed; or ``(N, C_i)``, averaged over visible positions, with
            `gap_before_final_norm`.

        Raises:
            ValueError: the images have another shape, or the mask does not fit them.
        """
        if x_NCHW.dim() != 4 or x_NCHW.shape[1] != self.in_channels:
            raise ValueError(
                f"images must have the shape (N, {self.in_channels}, H, W), got "
                f"{tuple(x_NCHW.shape)}"
            )
        layout = self._layout(x_NCHW, mask)
        features, outputs = x_NCHW, []
        for i, (downsample, stage) in enumerate(
            zip(self.downsample_layers, self.stages, strict=True)
        ):
            features = stage(downsample(features, layout), layout, x_NCHW.shape[0], self.with_cp)
            if i in self.out_indices:
                outputs.append(self._output(features, layout, getattr(self, f"norm{i}", None)))
        return tuple(outputs)

    def _layout(self, x_NCHW: Tensor, mask: Tensor | VisibleCells | None) -> Layout:
        if mask is None:
            if min(x_NCHW.shape[-2:]) < CELL_SIZE:
                raise ValueError(
                    f"images must be at least {CELL_SIZE} pixels high and wide, "
                    f"got {tuple(x_NCHW.shape)}"
                )
            return DenseLayout()
        cells = mask if isinstance(mask, VisibleCells) else VisibleCells.from_mask(mask)
        cells.check_fits(x_NCHW)
        return MASK_LAYOUTS[self.mask_layout](cells)

    def _output(self, features: Tensor, layout: Layout, norm: nn.Module | None) -> Tensor:
        if self.gap_before_final_norm:
            pooled_NC = layout.mean_per_image(features)
            return pooled_NC if norm is None else norm(pooled_NC)
        if norm is not None:
            features = layout.zero_removed(norm(features))
        # Compiled operations downstream, mmcv's RoIAlign among them, read memory as (N, C, H, W)
        # whatever the strides say.
        return layout.to_dense(features).contiguous()


class Stem(nn.ModuleList):
    """4x4 convolution of stride 4 and a LayerNorm: pixels to stage 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size=4, stride=4)
        super().__init__([conv, nn.LayerNorm(out_channels, eps=1e-6)])

    def forward(self, x_NCHW: Tensor, layout: Layout) -> Tensor:
        """Embed images; the result has the layout's shape."""
        conv, norm = cast(nn.Conv2d, self[0]), self[1]
        return layout.zero_removed(norm(layout.patch_embed(x_NCHW, conv)))


class Downsample(nn.ModuleList):
    """A LayerNorm and a 2x2 convolution of stride 2, between two stages."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size=2, stride=2)
        super().__init__([nn.LayerNorm(in_channels, eps=1e-6), conv])

    def forward(self, features: Tensor, layout: Layout) -> Tensor:
        """Halve the resolution of features in the layout's shape."""
        norm, conv = self[0], cast(nn.Conv2d, self[1])
        return layout.zero_removed(layout.downsample(norm(features), conv))


class Stage(nn.ModuleList):
    """The blocks of one resolution."""

    def forward(
        self, features: Tensor, layout: Layout, batch_size: int, with_cp: bool = False
    ) -> Tensor:
        """Apply the blocks to features in the layout's shape, which the result keeps."""
        for module in self:
            block = cast(Block, module)
            factor_N1 = block.draw_drop_path(batch_size, features.device)
            if with_cp and torch.is_grad_enabled():
                features = checkpoint(block, features, layout, factor_N1, use_reentrant=False)
            else:
                features = block(features, layout, factor_N1)
        return features


def resolve_arch(arch: Arch) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Depths and channels of an architecture.

    Raises:
        ValueError: the name is unknown, or the dictionary is not that of four stages.
    """
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise ValueError(
                f"unknown arch {arch!r}; choose one of {', '.join(ARCHITECTURES)}, "
                f"or give dict(depths=..., channels=...)"
            )
        arch = ARCHITECTURES[arch]
    if not isinstance(arch, Mapping) or set(arch) != {"depths", "channels"}:
        raise ValueError(
            f"arch must be a name or have exactly the keys depths and channels, got {arch!r}"
        )
    depths, channels = arch["depths"], arch["channels"]
    if not (_are_four_counts(depths) and _are_four_counts(channels)):
        raise ValueError(
            f"arch must give four positive depths and four positive channels, "
            f"got depths={depths!r}, channels={channels!r}"
        )
    return tuple(depths), tuple(channels)


def _are_four_counts(values: Any) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == 4
        and all(is_whole_number(value) and value >= 1 for value in values)
    )


def _resolve_out_indices(out_indices: int | Sequence[int], num_stages: int) -> tuple[int, ...]:
    indices = out_indices if isinstance(out_indices, Sequence) else (out_indices,)
    if not indices or any(
        not is_whole_number(i) or not -num_stages <= i < num_stages for i in indices
    ):
        raise ValueError(
            f"out_indices must name stages from {-num_stages} to {num_stages - 1}, "
            f"got {out_indices!r}"
        )
    return tuple(sorted({i % num_stages for i in indices}))
