"""The one initialisation of ConvNeXt V2 and its decoder."""

from __future__ import annotations

from torch import nn

INIT_STD = 0.02
"""Standard deviation of every weight at the start."""


def init_weights(module: nn.Module) -> None:
    """Draw the weights of one layer: truncated normal of std 0.02, biases zero.

    For `nn.Module.apply`. The released code redraws part of the encoder with a standard deviation
    of 1, which makes training diverge in half precision; here each weight is drawn once.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
