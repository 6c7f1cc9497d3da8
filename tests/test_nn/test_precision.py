"""bf16 autocast: no layout is further from float64 than plain PyTorch in the same precision is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmconvnextv2.nn import FCMAE, ConvNeXtV2

pytestmark = pytest.mark.unit

Features = Callable[[ConvNeXtV2, Tensor, Tensor | None], Tensor]


def plain_block(state: dict[str, Tensor], x_NCHW: Tensor, keep_N1HW: Tensor | None) -> Tensor:
    """The block as anyone would write it: convolution, multiplication by the mask, autocast."""

    def masked(y_NHWC: Tensor) -> Tensor:
        return y_NHWC if keep_N1HW is None else y_NHWC * keep_N1HW.permute(0, 2, 3, 1)

    weight, bias = state["depthwise_conv.weight"], state["depthwise_conv.bias"]
    y = F.conv2d(x_NCHW, weight, bias, padding=3, groups=weight.shape[0]).permute(0, 2, 3, 1)
    y = F.layer_norm(y, y.shape[-1:], state["norm.weight"], state["norm.bias"], 1e-6)
    y = F.gelu(F.linear(y, state["pointwise_conv1.weight"], state["pointwise_conv1.bias"]))
    y = masked(y)
    norm = torch.linalg.vector_norm(y.to(torch.promote_types(y.dtype, torch.float32)), dim=(1, 2))
    response = (norm / (norm.mean(-1, keepdim=True) + 1e-6))[:, None, None]
    y = state["grn.gamma"] * (y * response) + state["grn.beta"] + y
    y = F.linear(y, state["pointwise_conv2.weight"], state["pointwise_conv2.bias"])
    return x_NCHW + masked(y).permute(0, 3, 1, 2)


def plain_features(net: ConvNeXtV2, x_NCHW: Tensor, mask_NHW: Tensor | None) -> Tensor:
    """Raw output of the last stage with plain PyTorch operations."""
    state = dict(net.named_parameters())

    def sub(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    def norm_NCHW(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], weight, bias, 1e-6).permute(
            0, 3, 1, 2
        )

    for i, stage in enumerate(net.stages):
        layer = sub(f"downsample_layers.{i}.")
        conv, norm = ("0", "1") if i == 0 else ("1", "0")
        if i > 0:
            x_NCHW = norm_NCHW(x_NCHW, layer[f"{norm}.weight"], layer[f"{norm}.bias"])
        stride = 4 if i == 0 else 2
        x_NCHW = F.conv2d(x_NCHW, layer[f"{conv}.weight"], layer[f"{conv}.bias"], stride=stride)
        if i == 0:
            x_NCHW = norm_NCHW(x_NCHW, layer[f"{norm}.weight"], layer[f"{norm}.bias"])
        keep = None
        if mask_NHW is not None:
            side = 8 >> i
            keep = ~mask_NHW.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
            x_NCHW = x_NCHW * keep
        for b in range(len(stage)):
            x_NCHW = plain_block(sub(f"stages.{i}.{b}."), x_NCHW, keep)
    return x_NCHW


def own_features(net: ConvNeXtV2, x_NCHW: Tensor, mask_NHW: Tensor | None) -> Tensor:
    """The same from the network itself, in the layout it is set to."""
    return net(x_NCHW, mask_NHW)[-1]


def gradients_and_feature(
    net: ConvNeXtV2, x_NCHW: Tensor, mask_NHW: Tensor | None, features: Features
) -> dict[str, Tensor]:
    """The feature map, and the gradients of its sum of squares."""
    net.zero_grad()
    feature = features(net, x_NCHW, mask_NHW)
    feature.to(torch.promote_types(feature.dtype, torch.float32)).square().sum().backward()
    return {"feature": feature.detach()} | {n: p.grad.clone() for n, p in net.named_parameters()}


@pytest.mark.parametrize("counts", [[2, 3, 6], [3, 3, 3]], ids=["unequal", "equal"])
@pytest.mark.parametrize("layout", ["dense", "packed", "masked"])
def test_bf16_is_no_further_from_float64_than_plain_pytorch(
    layout, counts, tiny_arch, randomize_grn, random_mask, relative_error
):
    """Root mean square over draws, since one draw differs by luck, by a factor of up to 3."""
    draws = 6
    ours_total: dict[str, float] = {}
    plain_total: dict[str, float] = {}
    for seed in range(draws):
        kwargs = dict(arch=tiny_arch, gap_before_final_norm=False, output_norms=False)
        net = randomize_grn(ConvNeXtV2(**kwargs), seed)
        exact = ConvNeXtV2(**kwargs).double()
        exact.load_state_dict(net.state_dict())
        mask_NHW = None if layout == "dense" else random_mask(counts, (2, 3), seed)
        if layout != "dense":
            net.mask_layout = layout
        x_NCHW = torch.randn(3, 3, 64, 96)

        wanted = gradients_and_feature(exact, x_NCHW.double(), mask_NHW, plain_features)
        with torch.autocast("cpu", torch.bfloat16):
            plain = gradients_and_feature(net, x_NCHW, mask_NHW, plain_features)
            ours = gradients_and_feature(net, x_NCHW, mask_NHW, own_features)
        for name, value in wanted.items():
            for total, result in ((ours_total, ours), (plain_total, plain)):
                square = relative_error(result[name], value) ** 2
                total[name] = total.get(name, 0.0) + square / draws

    for name, plain_square in plain_total.items():
        error, allowed = ours_total[name] ** 0.5, 2 * plain_square**0.5
        assert 1e-4 < error < allowed, (name, error, allowed)


def test_the_loss_under_autocast_is_float32_and_close(tiny_arch, randomize_grn, random_mask):
    model = randomize_grn(FCMAE.build(tiny_arch, decoder_channels=16))
    x_NCHW = torch.randn(2, 3, 64, 64)
    mask_NHW = random_mask([1, 2], (2, 2))
    exact = model(x_NCHW, mask=mask_NHW, mode="loss")["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x_NCHW, mask=mask_NHW, mode="loss")["loss"]
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=2e-2)
    rough.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_a_whole_model_in_bf16(layout, tiny_arch, random_mask):
    net = ConvNeXtV2(arch=tiny_arch, mask_layout=layout).bfloat16()
    (feature,) = net(torch.randn(2, 3, 64, 64).bfloat16(), random_mask([1, 2], (2, 2)))
    assert feature.dtype == torch.bfloat16 and torch.isfinite(feature).all()
