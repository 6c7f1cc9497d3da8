"""The decoder of FCMAE: mask tokens, one ConvNeXt V2 block, a linear prediction of pixels.

Shape suffixes: N batch, C encoder channels, D decoder channels, H and W the grid of cells, P
values of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmconvnextv2.nn.arguments import check_count
from mmconvnextv2.nn.block import Block
from mmconvnextv2.nn.cells import CELL_SIZE
from mmconvnextv2.nn.init import INIT_STD, init_weights
from mmconvnextv2.nn.layouts import DenseLayout


class FCMAEDecoder(nn.Module):
    """Predict the pixels of each cell from the features of the visible ones (paper, section 3).

    The blocks are dense: their GRN sees mask tokens as well, as in the official code.

    Args:
        in_channels: channels of the encoder's last stage.
        image_channels: channels of the images to predict.
        num_channels: width of the decoder; 512 in the paper.
        depth: number of blocks; 1 in the paper.

    Raises:
        ValueError: an argument is no whole number, or too small.
    """

    def __init__(
        self,
        in_channels: int,
        image_channels: int = 3,
        num_channels: int = 512,
        depth: int = 1,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("image_channels", image_channels)
        check_count("num_channels", num_channels)
        check_count("depth", depth, least=0)
        self.in_channels = in_channels
        self.image_channels = image_channels
        self.projection = nn.Linear(in_channels, num_channels)
        self.mask_token = nn.Parameter(torch.empty(num_channels))
        self.blocks = nn.ModuleList([Block(num_channels) for _ in range(depth)])
        self.prediction = nn.Linear(num_channels, CELL_SIZE**2 * image_channels)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)

    def forward(self, features_NCHW: Tensor, mask_NHW: Tensor) -> Tensor:
        """Predict every patch.

        Args:
            features_NCHW: encoder features ``(N, C, H, W)``; those of removed cells are ignored.
            mask_NHW: boolean ``(N, H, W)``, True where a cell is removed.

        Returns:
            ``(N, H, W, P)``, in the order of `patchify`.
        """
        x_NHWD = self.projection(features_NCHW.permute(0, 2, 3, 1))
        x_NHWD = torch.where(mask_NHW[..., None], self.mask_token.to(x_NHWD.dtype), x_NHWD)
        layout = DenseLayout()
        for block in self.blocks:
            x_NHWD = block(x_NHWD, layout)
        return self.prediction(x_NHWD)
