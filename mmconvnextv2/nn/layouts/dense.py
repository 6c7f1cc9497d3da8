"""The dense layout: nothing is removed, plain ATen operations on ``(N, H, W, C)``.

Shape suffixes: N batch, H and W positions, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmconvnextv2.nn.depthwise import depthwise_with_fast_gradient
from mmconvnextv2.nn.eager import is_eager_on_cpu
from mmconvnextv2.nn.layouts.base import Layout


class DenseLayout(Layout):
    """Features of whole images, for fine-tuning, inference and export.

    The convolutions run on the channels-last view of the features, so no copy is made.
    """

    def patch_embed(self, x_NCHW: Tensor, conv: nn.Conv2d) -> Tensor:
        """See `Layout.patch_embed`."""
        return _channels_last(conv(x_NCHW))

    def downsample(self, features: Tensor, conv: nn.Conv2d) -> Tensor:
        """See `Layout.downsample`."""
        return _channels_last(conv(_channels_first(features)))

    def depthwise(self, features: Tensor, conv: nn.Conv2d) -> Tensor:
        """See `Layout.depthwise`."""
        x_NCHW = _channels_first(features)
        trains = torch.is_grad_enabled() and conv.weight.requires_grad
        if trains and is_eager_on_cpu(x_NCHW):
            return _channels_last(depthwise_with_fast_gradient(x_NCHW, conv.weight, conv.bias))
        return _channels_last(conv(x_NCHW))

    def zero_removed(self, features: Tensor) -> Tensor:
        """See `Layout.zero_removed`; nothing is removed here."""
        return features

    def norm_per_image(self, features: Tensor) -> Tensor:
        """See `Layout.norm_per_image`."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        return torch.linalg.vector_norm(features, dim=(1, 2), dtype=dtype)

    def scale_per_image(self, features: Tensor, factor_NC: Tensor) -> Tensor:
        """See `Layout.scale_per_image`."""
        return features * factor_NC[:, None, None]

    def group_images(self, features: Tensor) -> Tensor | None:
        """See `Layout.group_images`."""
        return features.flatten(1, 2)

    def to_dense(self, features: Tensor) -> Tensor:
        """See `Layout.to_dense`."""
        return _channels_first(features)

    def mean_per_image(self, features: Tensor) -> Tensor:
        """See `Layout.mean_per_image`."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        return features.mean(dim=(1, 2), dtype=dtype).to(features.dtype)


def _channels_first(x_NHWC: Tensor) -> Tensor:
    return x_NHWC.permute(0, 3, 1, 2)


def _channels_last(x_NCHW: Tensor) -> Tensor:
    return x_NCHW.permute(0, 2, 3, 1)
