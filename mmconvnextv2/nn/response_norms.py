"""Rivals of GRN, for ablations: its own parts exchanged, other norms, gates (tables 2 and 16).

Each takes GRN's place on the 4C features of a block, between GELU and the second pointwise layer,
and sees visible positions only. They run in layouts that hold whole feature maps, dense and
masked. Where the paper names a rival and no more, the choice is said here and is this project's.

Shape suffixes: N batch, H and W positions, C channels (4C of the block), P positions of the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmconvnextv2.nn.arguments import check_count
from mmconvnextv2.nn.grn import GRN
from mmconvnextv2.nn.layouts import MASK_LAYOUTS, DenseLayout, Layout, MaskedLayout

ResponseNormConfig = str | Mapping[str, Any]
"""A name of `RESPONSE_NORMS`, or ``dict(type=name, ...)`` with arguments of its class."""


def build_response_norm(config: ResponseNormConfig, num_channels: int) -> ResponseNorm:
    """Build what stands in GRN's place.

    Args:
        config: a name of `RESPONSE_NORMS`, or ``dict(type=name, ...)``.
        num_channels: number of channels C that it gets.

    Raises:
        ValueError: there is no such name, or an argument is outside what is allowed.
        TypeError: the class takes no such argument.
    """
    options = dict(config) if isinstance(config, Mapping) else dict(type=config)
    name = options.pop("type", None)
    if not isinstance(name, str) or name not in RESPONSE_NORMS:
        raise ValueError(
            f"response_norm must be None (GRN), one of {', '.join(RESPONSE_NORMS)}, or "
            f"dict(type=one of them, ...), got {config!r}"
        )
    return RESPONSE_NORMS[name](num_channels, **options)


def check_layout(layout: type[Layout]) -> None:
    """Check that rivals of GRN run in a layout.

    Raises:
        ValueError: it stores visible cells alone.
    """
    if not issubclass(layout, DenseLayout):
        name = next((name for name, kind in MASK_LAYOUTS.items() if kind is layout), layout)
        raise ValueError(
            f"response_norm, which takes GRN's place, does not run with mask_layout={name!r}, "
            f"which stores visible cells alone: set mask_layout='masked'"
        )


class ResponseNorm(nn.Module, ABC):
    """What can stand in GRN's place, called as GRN is."""

    def forward(self, features: Tensor, layout: Layout | None = None) -> Tensor:
        """Normalise or gate.

        Args:
            features: ``(N, H, W, C)``; removed cells hold zeros.
            layout: where the visible cells are; None for dense features.

        Returns:
            Tensor of the shape and dtype of `features`; removed cells may hold anything.

        Raises:
            ValueError: the layout stores visible cells alone.
        """
        layout = layout or DenseLayout()
        check_layout(type(layout))
        return self.respond(features, layout).to(features.dtype)

    @abstractmethod
    def respond(self, features: Tensor, layout: Layout) -> Tensor:
        """Compute the result of `forward`, in any dtype."""


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _side(features: Tensor, layout: MaskedLayout) -> int:
    """Positions along the side of a cell."""
    return features.shape[1] // layout.cells.mask_NHW.shape[1]


# GRN with other parts.

AGGREGATIONS: dict[str, Callable[[Tensor, Layout], Tensor]] = {
    "avg": lambda x, layout: layout.mean_per_image(_wide(x)),
    "l1": lambda x, layout: _wide(x).abs().sum(dim=(1, 2)),
    "l2": lambda x, layout: layout.norm_per_image(x),
}
"""G(X), one number a channel and image: ``(N, H, W, C)`` to ``(N, C)`` (table 2a)."""

NORMALIZATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "standardize": lambda g, eps: F.layer_norm(g, g.shape[-1:], eps=eps),
    "inverse_sum": lambda g, eps: 1 / (g.sum(dim=-1, keepdim=True) + eps),
    "divisive": lambda g, eps: g / (g.mean(dim=-1, keepdim=True) + eps),
}
"""N(G), across channels (table 2b). "divisive" is GRN's and divides by the mean, as GRN does;
"inverse_sum" is the same for all channels of an image and divides by the sum, as printed."""


class GRNVariant(ResponseNorm, GRN):
    """GRN, ``gamma * X * N(G(X)) + beta + X``, with its parts exchanged or left out.

    It is a `GRN` for whoever asks, such as the rule that GRN's parameters are not decayed. With
    the defaults it computes what `GRN` does.

    Args:
        num_channels: number of channels C.
        aggregation: G, a name of `AGGREGATIONS`; None leaves it out, and N sees each position's
            own features. Their mean over channels can come near 0: the paper calls ``X * N(X)``
            unstable (table 16c).
        normalization: N, a name of `NORMALIZATIONS`; None leaves it out, for ``X * G(X)`` (table
            16b), or ``X`` with an affine scaling alone if G is left out as well (16a).
        residual: add X (table 2c). Without it gamma starts at 1 and not at 0, where nothing would
            pass.
        affine: learn gamma and beta; False for ``X * N(G(X)) + X``.
        eps: added to the mean, the sum or the variance.

    Raises:
        ValueError: there is no such aggregation or normalisation.
    """

    def __init__(
        self,
        num_channels: int,
        aggregation: str | None = "l2",
        normalization: str | None = "divisive",
        residual: bool = True,
        affine: bool = True,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(num_channels, eps)
        _check_choice("aggregation", aggregation, AGGREGATIONS)
        _check_choice("normalization", normalization, NORMALIZATIONS)
        self.aggregation = aggregation
        self.normalization = normalization
        self.residual = residual
        self.affine = affine
        if not affine:
            self.register_parameter("gamma", None)
            self.register_parameter("beta", None)
        elif not residual:
            nn.init.ones_(self.gamma)

    def respond(self, features: Tensor, layout: Layout) -> Tensor:
        """See `ResponseNorm.respond`."""
        factor = self._response(features, layout)
        if self.affine:
            factor = self.gamma * factor
        if self.residual:
            factor = 1 + factor
        scaled_NHWC = features * factor.to(features.dtype)
        return scaled_NHWC + self.beta.to(features.dtype) if self.affine else scaled_NHWC

    def _response(self, features: Tensor, layout: Layout) -> Tensor:
        """N(G(X)), to multiply features by: one factor an image, a channel, or a value."""
        if self.aggregation is None:
            response = _wide(features)
        else:
            response = AGGREGATIONS[self.aggregation](features, layout)[:, None, None]
        if self.normalization is not None:
            return NORMALIZATIONS[self.normalization](response, self.eps)
        return response if self.aggregation is not None else torch.ones_like(response)

    def extra_repr(self) -> str:
        """Show what was exchanged."""
        return (
            f"aggregation={self.aggregation}, normalization={self.normalization}, "
            f"residual={self.residual}, affine={self.affine}"
        )


def _check_choice(name: str, value: str | None, choices: Mapping[str, Any]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{name} must be None or one of {', '.join(choices)}, got {value!r}")


# Other norms (table 2d).


class LocalResponseNorm(ResponseNorm):
    """Divide by the squares of neighbouring channels at the same position (Krizhevsky, 2012).

    Args:
        num_channels: number of channels C; not used, there are no parameters.
        size: channels to look at. The other constants are torch's.
    """

    def __init__(self, num_channels: int, size: int = 5) -> None:
        super().__init__()
        check_count("size", size)
        self.size = size

    def respond(self, features: Tensor, layout: Layout) -> Tensor:
        """See `ResponseNorm.respond`."""
        rows_PC1 = _wide(features).flatten(0, 2)[..., None]
        return F.local_response_norm(rows_PC1, self.size).view_as(features)


class BatchNorm(ResponseNorm):
    """BatchNorm over the visible positions of all images of the batch.

    Each process has its own statistics, unless the config says ``sync_bn="torch"``. With activation
    checkpointing the running ones move twice a step.

    Args:
        num_channels: number of channels C.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(num_channels)

    def respond(self, features: Tensor, layout: Layout) -> Tensor:
        """See `ResponseNorm.respond`."""
        rows_PC = features.flatten(0, 2)
        if not isinstance(layout, MaskedLayout):
            return self.norm(rows_PC).view_as(features)
        visible_P = layout.cells.positions[_side(features, layout)]
        normed_PC = self.norm(rows_PC[visible_P])
        return torch.zeros_like(rows_PC).index_copy(0, visible_P, normed_PC).view_as(features)


class LayerNorm(ResponseNorm):
    """LayerNorm over the channels of each position.

    Args:
        num_channels: number of channels C.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_channels, eps=1e-6)

    def respond(self, features: Tensor, layout: Layout) -> Tensor:
        """See `ResponseNorm.respond`."""
        return self.norm(features)


# Gates (table 2e).


class SqueezeExcitation(ResponseNorm):
    """A gate a channel from the image's mean (Hu et al., 2018).

    Args:
        num_channels: number of channels C.
        reduction: C divided by the width between the two layers. 16 gives the paper's number of
            parameters; the paper does not state it.
    """

    def __init__(self, num_channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = _bottleneck(num_channels, reduction)

    def respond(self, features: Tensor, layout: Layout) -> Tensor:
        """See `ResponseNorm.respond`."""
        gate_NC = self.mlp(_mean_per_image(features, layout)).sigmoid()
        return layout.scale_per_image(features, gate_NC)


class CBAM(ResponseNorm):
    """A gate a channel, from the image's mean and maximum, then one a position (Woo et al., 2018).

    As their paper writes it: without a norm after the 7x7 convolution, which here sees zeros where
    cells are removed, as the block's depthwise convolution does.

    Args:
        num_channels: number of channels C.
        reduction: C divided by the width between the two layers, as in `SqueezeExcitation`.
    """

    def __init__(self, num_channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = _bottleneck(num_channels, reduction)
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)

    def respond(self, features: Tensor, layout: Layout) -> Tensor:
        """See `ResponseNorm.respond`."""
        mean_NC = _mean_per_image(features, layout)
        gate_NC = (self.mlp(mean_NC) + self.mlp(_max_per_image(features, layout))).sigmoid()
        features = layout.scale_per_image(features, gate_NC.to(features.dtype))
        summary_N2HW = torch.stack([features.mean(dim=-1), features.amax(dim=-1)], dim=1)
        gate_N1HW = self.conv(summary_N2HW).sigmoid()
        return features * gate_N1HW.permute(0, 2, 3, 1)


def _bottleneck(num_channels: int, reduction: int) -> nn.Sequential:
    check_count("reduction", reduction)
    width = max(num_channels // reduction, 1)
    return nn.Sequential(nn.Linear(num_channels, width), nn.ReLU(), nn.Linear(width, num_channels))


def _mean_per_image(features: Tensor, layout: Layout) -> Tensor:
    return layout.mean_per_image(_wide(features)).to(features.dtype)


def _max_per_image(features: Tensor, layout: Layout) -> Tensor:
    if isinstance(layout, MaskedLayout):
        removed_NHW = layout.removed[_side(features, layout)]
        features = features.masked_fill(removed_NHW[..., None], -torch.inf)
    return features.amax(dim=(1, 2))


RESPONSE_NORMS: dict[str, type[ResponseNorm]] = {
    "grn": GRNVariant,
    "lrn": LocalResponseNorm,
    "bn": BatchNorm,
    "ln": LayerNorm,
    "se": SqueezeExcitation,
    "cbam": CBAM,
}
"""Rivals of GRN by the name that `ConvNeXtV2(response_norm=...)` takes."""
