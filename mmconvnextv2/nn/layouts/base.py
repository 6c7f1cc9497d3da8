"""The few questions of a ConvNeXt V2 whose answer depends on where visible cells are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Layout(ABC):
    """One way to hold the visible part of a batch of feature maps.

    Channels are last in every layout, and the two axes before them are spatial, so a pointwise
    layer, LayerNorm or GELU needs no layout. What mixes positions, or speaks of an image as a
    whole, asks one. A layout lives for one forward call, holds no parameters and changes nothing.

    `features` below stands for a tensor in the layout's own shape: ``(N, H, W, C)`` for dense and
    masked, ``(M, s, s, C)`` for packed.
    """

    @classmethod  # noqa: B027 - most layouts need torch alone
    def check_available(cls) -> None:
        """Check that what the layout needs besides torch is installed.

        Raises:
            ImportError: it is not; the message says how to install it.
        """

    @abstractmethod
    def patch_embed(self, x_NCHW: Tensor, conv: nn.Conv2d) -> Tensor:
        """Apply the stem's 4x4 convolution of stride 4 to images ``(N, C, H, W)``."""

    @abstractmethod
    def downsample(self, features: Tensor, conv: nn.Conv2d) -> Tensor:
        """Apply a 2x2 convolution of stride 2."""

    @abstractmethod
    def depthwise(self, features: Tensor, conv: nn.Conv2d) -> Tensor:
        """Apply a depthwise convolution that sees zeros where cells are removed."""

    @abstractmethod
    def zero_removed(self, features: Tensor) -> Tensor:
        """Set the features of removed cells, where the layout stores any, to zero."""

    @abstractmethod
    def norm_per_image(self, features: Tensor) -> Tensor:
        """L2 norm of each channel over the visible positions of each image.

        Removed cells, where the layout stores any, must hold zeros. The norm is computed in at
        least float32; the gradient of a channel that is zero everywhere is zero.

        Returns:
            ``(N, C)``, at least float32.
        """

    @abstractmethod
    def scale_per_image(self, features: Tensor, factor_NC: Tensor) -> Tensor:
        """Multiply the features of each image by its own factor.

        Args:
            features: features in this layout.
            factor_NC: ``(N, C)``, or ``(N, 1)`` for one factor an image.
        """

    @abstractmethod
    def group_images(self, features: Tensor) -> Tensor | None:
        """View the features as ``(N, P, C)``, the P visible positions of each image.

        Returns:
            The view; None where images differ in P, or zeros are stored between visible positions.
        """

    @abstractmethod
    def to_dense(self, features: Tensor) -> Tensor:
        """Feature map ``(N, C, H, W)``, zeros where cells are removed."""

    @abstractmethod
    def mean_per_image(self, features: Tensor) -> Tensor:
        """Mean over the visible positions of each image, ``(N, C)``."""
