"""A file of the official sparse encoder, built and run by MinkowskiEngine itself.

The modules below have the names and the arithmetic of the official pre-training script. The images
are not square, since a transposed kernel is invisible in symmetric data.

Shape suffixes: N batch, C channels, H and W pixels or cells, P positions.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from mmconvnextv2.checkpoint import convert_state_dict
from mmconvnextv2.nn import ConvNeXtV2
from mmconvnextv2.nn.layouts.minkowski import import_engine

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(
        importlib.util.find_spec("MinkowskiEngine") is None,
        reason="needs MinkowskiEngine, which has to be compiled: requirements/minkowski.txt",
    ),
]


class Pointwise(nn.Module):
    """A module applied to the rows of a sparse tensor."""

    def forward(self, x: object) -> object:
        return import_engine().SparseTensor(
            self.rows(x.F),
            coordinate_map_key=x.coordinate_map_key,
            coordinate_manager=x.coordinate_manager,
        )


class SparseLayerNorm(Pointwise):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(channels, eps=1e-6)

    def rows(self, x_PC: Tensor) -> Tensor:
        return self.ln(x_PC)


class SparseGRN(Pointwise):
    """Over all positions of the batch, which is one image here."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, channels))
        self.beta = nn.Parameter(torch.zeros(1, channels))

    def rows(self, x_PC: Tensor) -> Tensor:
        norm_1C = x_PC.square().sum(dim=0, keepdim=True).sqrt()
        return self.gamma * x_PC * (norm_1C / (norm_1C.mean() + 1e-6)) + self.beta + x_PC


class SparseBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        engine = import_engine()
        # The official fork's depthwise convolution needs a GPU; this one has the same parameters.
        self.dwconv = engine.MinkowskiChannelwiseConvolution(
            channels, kernel_size=7, bias=True, dimension=2
        )
        self.norm = SparseLayerNorm(channels)
        self.pwconv1 = engine.MinkowskiLinear(channels, 4 * channels)
        self.act = engine.MinkowskiGELU()
        self.pwconv2 = engine.MinkowskiLinear(4 * channels, channels)
        self.grn = SparseGRN(4 * channels)

    def forward(self, x: object) -> object:
        hidden = self.act(self.pwconv1(self.norm(self.dwconv(x))))
        return x + self.pwconv2(self.grn(hidden))


class SparseEncoder(nn.Module):
    def __init__(self, depths: list[int], channels: list[int]) -> None:
        super().__init__()
        stem_norm = nn.LayerNorm(channels[0], eps=1e-6)
        self.downsample_layers = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(3, channels[0], 4, stride=4), stem_norm])]
        )
        for before, after in zip(channels, channels[1:], strict=False):
            convolution = import_engine().MinkowskiConvolution(
                before, after, kernel_size=2, stride=2, bias=True, dimension=2
            )
            self.downsample_layers.append(nn.Sequential(SparseLayerNorm(before), convolution))
        self.stages = nn.ModuleList(
            nn.Sequential(*[SparseBlock(width) for _ in range(depth)])
            for depth, width in zip(depths, channels, strict=True)
        )

    def forward(self, x_NCHW: Tensor, mask_NHW: Tensor) -> Tensor:
        conv, norm = self.downsample_layers[0]
        x_NHWC = norm(conv(x_NCHW).permute(0, 2, 3, 1))
        visible_NHW = ~mask_NHW.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
        # Image, row, column: the order in which the official code finds them.
        coordinates_P3 = visible_NHW.nonzero().int()
        x = import_engine().SparseTensor(x_NHWC[visible_NHW], coordinates_P3.contiguous())
        for i, stage in enumerate(self.stages):
            x = stage(self.downsample_layers[i](x) if i else x)
        height, width = mask_NHW.shape[1:]
        dense, _, _ = x.dense(
            shape=torch.Size([len(mask_NHW), x.F.shape[1], height, width]),
            min_coordinate=torch.IntTensor([0, 0]),
        )
        return dense


def test_the_engines_own_file_gives_the_same_features(tiny_arch, randomize_grn, random_mask):
    sparse = randomize_grn(SparseEncoder(**tiny_arch)).double()
    with torch.no_grad():
        for name, parameter in sparse.named_parameters():
            if name.endswith("kernel"):  # (offsets, inputs, outputs) or (offsets, channels)
                fan_in = parameter[..., 0].numel() if parameter.ndim == 3 else len(parameter)
                parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
            elif parameter.ndim == 2 and name.endswith(".bias"):
                parameter.normal_()
    saved = {f"encoder.{key}": value for key, value in sparse.state_dict().items()}
    conversion = convert_state_dict(saved)
    assert (conversion.source, conversion.left_out) == ("official-sparse", ())

    ours = ConvNeXtV2(
        tiny_arch, output_norms=False, gap_before_final_norm=False, mask_layout="masked"
    ).double()
    state = {k.removeprefix("backbone."): v for k, v in conversion.state_dict.items()}
    ours.load_state_dict(state)
    x_NCHW = torch.randn(1, 3, 96, 160, dtype=torch.float64)
    mask_NHW = random_mask([7], (3, 5))
    with torch.no_grad():
        expected, (actual,) = sparse(x_NCHW, mask_NHW), ours(x_NCHW, mask_NHW)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)

    back = convert_state_dict(conversion.state_dict, target="official-sparse").state_dict
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        assert back[key].shape == value.shape and torch.equal(back[key], value), key
