"""Dense features equal timm's convnextv2 models with the same weights, for all eight sizes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmconvnextv2.nn import ARCHITECTURES, ConvNeXtV2

timm = pytest.importorskip("timm", reason="timm is the peer compared with")
from timm.models.convnext import ConvNeXt  # noqa: E402

pytestmark = pytest.mark.unit

Error = Callable[[Tensor, Tensor], float]

CONV_MLP = {"atto", "femto", "pico", "nano"}
"""Sizes whose pointwise layers timm writes as 1x1 convolutions."""

RENAMED = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"\.conv_dw\.", ".depthwise_conv."),
    (r"\.mlp\.fc", ".pointwise_conv"),
    (r"\.mlp\.grn\.weight$", ".grn.gamma"),
    (r"\.mlp\.grn\.bias$", ".grn.beta"),
    (r"^(head\.)?norm\.", "norm3."),
)


def to_our_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of timm without classifier under mmpretrain's keys, linear weights 2-D."""
    ours = {}
    for key, value in state.items():
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        ours[key] = value.flatten(1) if "pointwise_conv" in key and value.ndim == 4 else value
    return ours


def compare(peer: nn.Module, arch, x_NCHW: Tensor, error: Error, tolerance: float) -> None:
    """Feature maps of all stages, and the pooled and normalised vector."""
    state = to_our_keys(peer.state_dict())
    maps = peer.forward_intermediates(x_NCHW, intermediates_only=True)
    net = ConvNeXtV2(arch=arch).to(x_NCHW)
    raw = ConvNeXtV2(
        arch=arch,
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        output_norms=False,
    ).to(x_NCHW)
    raw.load_state_dict({k: v for k, v in state.items() if not k.startswith("norm")}, strict=True)
    for ours, theirs in zip(raw(x_NCHW), maps, strict=True):
        assert error(ours, theirs) < tolerance
    net.load_state_dict(state, strict=True)
    assert error(net(x_NCHW)[0], peer(x_NCHW)) < tolerance


@pytest.mark.parametrize("size", [(64, 64), (75, 98), (33, 127)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_narrow_versions_of_all_sizes(arch, size, randomize_grn, relative_error):
    """The depths of each size at an eighth of the width, at sides off the multiples of 32."""
    settings = ARCHITECTURES[arch]
    depths, channels = list(settings["depths"]), [c // 8 for c in settings["channels"]]
    peer = ConvNeXt(
        depths=depths,
        dims=channels,
        num_classes=0,
        use_grn=True,
        ls_init_value=None,
        conv_mlp=arch in CONV_MLP,
    )
    # A small residual branch keeps 36 random blocks from growing out of proportion.
    randomize_grn(peer).double()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "fc2.weight" in name:
                parameter.mul_(0.2)
    x_NCHW = torch.randn(1, 3, *size, dtype=torch.float64)
    compare(peer, dict(depths=depths, channels=channels), x_NCHW, relative_error, 1e-10)


@pytest.mark.parametrize("size", [(64, 96), (75, 98)])
def test_the_real_atto(size, randomize_grn, relative_error):
    peer = randomize_grn(timm.create_model("convnextv2_atto", num_classes=0))
    compare(peer, "atto", torch.randn(2, 3, *size), relative_error, 1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_keys_and_shapes_of_all_sizes(arch):
    peer = timm.create_model(f"convnextv2_{arch}", num_classes=0, device="meta")
    with torch.device("meta"):
        net = ConvNeXtV2(arch=arch)
    theirs = {key: value.shape for key, value in to_our_keys(peer.state_dict()).items()}
    assert theirs == {key: value.shape for key, value in net.state_dict().items()}
