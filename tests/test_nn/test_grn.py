"""GRN against Algorithm 1 written with loops, its precision and its gradient at dead channels."""

from __future__ import annotations

import pytest
import torch

from mmconvnextv2.nn import GRN, ConvNeXtV2

pytestmark = pytest.mark.unit


def algorithm_1(x_NHWC, gamma_C, beta_C):
    """Value by value, for one sample after the other."""
    out = torch.empty_like(x_NHWC)
    channels = x_NHWC.shape[-1]
    for n, x_HWC in enumerate(x_NHWC):
        norms = [x_HWC[..., c].square().sum().sqrt() for c in range(channels)]
        mean = sum(norms) / channels
        for c in range(channels):
            response = norms[c] / (mean + 1e-6)
            out[n, ..., c] = gamma_C[c] * (x_HWC[..., c] * response) + beta_C[c] + x_HWC[..., c]
    return out


def test_grn_is_algorithm_1(randomize_grn):
    grn = randomize_grn(GRN(6)).double()
    x_NHWC = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    expected = algorithm_1(x_NHWC, grn.gamma, grn.beta)
    torch.testing.assert_close(grn(x_NHWC), expected, rtol=1e-12, atol=1e-12)


def test_grn_starts_as_the_identity():
    grn = GRN(6)
    x_NHWC = torch.randn(2, 4, 5, 6)
    assert torch.equal(grn(x_NHWC), x_NHWC)
    assert grn.gamma.shape == grn.beta.shape == (6,)


def test_grn_gradient(randomize_grn):
    grn = randomize_grn(GRN(4)).double()
    x_NHWC = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(grn, (x_NHWC,))


def test_a_zero_channel_has_a_finite_and_zero_norm_gradient(randomize_grn):
    """The derivative of the norm at 0 is taken as 0, so only the identity and gamma's part act."""
    grn = randomize_grn(GRN(4)).double()
    x_NHWC = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    x_NHWC[..., 1] = 0
    x_NHWC.requires_grad_()
    grn(x_NHWC).sum().backward()
    # The response of a zero channel is 0, its norm's gradient is 0: what is left is the residual.
    assert (x_NHWC.grad[..., 1] == 1).all()
    assert torch.isfinite(x_NHWC.grad).all()


def test_all_channels_zero(randomize_grn):
    grn = randomize_grn(GRN(4))
    x_NHWC = torch.zeros(2, 3, 2, 4, requires_grad=True)
    out = grn(x_NHWC)
    out.sum().backward()
    assert torch.equal(out, grn.beta.expand_as(out))
    assert torch.isfinite(x_NHWC.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_norm_does_not_overflow_in_half_precision(dtype, randomize_grn, relative_error):
    """A norm of 2000 over 64x64 positions is 128000, beyond float16's largest number of 65504."""
    grn = randomize_grn(GRN(4))
    x_NHWC = (2000 * torch.randn(1, 64, 64, 4)).to(dtype)
    expected = algorithm_1(x_NHWC.double(), grn.gamma.double(), grn.beta.double())
    out = grn.to(dtype)(x_NHWC)
    assert out.dtype == dtype
    assert relative_error(out, expected) < torch.finfo(dtype).eps


@pytest.mark.parametrize("layout", ["dense", "packed", "masked"])
@pytest.mark.parametrize("with_cp", [False, True])
def test_a_dead_channel_in_the_network_gives_finite_gradients(layout, with_cp, random_mask):
    """At first weights 0 and bias 0, GELU(0) = 0 everywhere: some channels, then all of them."""
    arch = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    mask = () if layout == "dense" else (random_mask([1, 3], (2, 2)),)
    for dead in (slice(0, 3), slice(None)):
        net = ConvNeXtV2(arch=arch, with_cp=with_cp)
        if mask:
            net.mask_layout = layout
        with torch.no_grad():
            for stage in net.stages:
                stage[0].pointwise_conv1.weight[dead] = 0
                stage[0].grn.gamma.normal_()
        net(torch.randn(2, 3, 64, 64), *mask)[0].square().sum().backward()
        for name, parameter in net.named_parameters():
            assert torch.isfinite(parameter.grad).all(), name
