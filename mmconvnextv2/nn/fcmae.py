"""FCMAE, the fully convolutional masked autoencoder (paper, section 3), with torch alone.

Shape suffixes: N batch, C channels, H and W pixels of an image or the grid of cells, P values of
a patch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmconvnextv2.nn.cells import CELL_SIZE, VisibleCells, enlarge_mask
from mmconvnextv2.nn.convnextv2 import Arch, ConvNeXtV2
from mmconvnextv2.nn.decoder import FCMAEDecoder
from mmconvnextv2.nn.decoder_transformer import FCMAETransformerDecoder
from mmconvnextv2.nn.decoder_unet import FCMAEUNetDecoder
from mmconvnextv2.nn.head import FCMAEHead
from mmconvnextv2.nn.masking import random_masking
from mmconvnextv2.nn.missing import Missing
from mmconvnextv2.nn.patchify import patchify, unpatchify

Decoder = FCMAEDecoder | FCMAEUNetDecoder | FCMAETransformerDecoder
"""The paper's decoder, and those that its table 1a compares it with."""

Features = Tensor | tuple[Tensor, ...]
"""What a decoder takes: the map of the encoder's last stage, or with skips those of all stages."""


class FCMAE(nn.Module):
    """Masked autoencoder: a masked ConvNeXt V2, a small dense decoder, a loss on removed cells.

    Args:
        backbone: encoder, built with ``output_norms=False, gap_before_final_norm=False``.
        neck: decoder.
        head: target and loss.
        sparse_encoder: compute on visible cells alone. False for the paper's ablation "without
            sparse convolution": the dense encoder sees zeros in the pixels of removed cells, and
            whatever its layers make of them. Only the decoder's mask tokens remain as they are.

    Raises:
        ValueError: the parts do not fit each other.
    """

    def __init__(
        self,
        backbone: ConvNeXtV2,
        neck: Decoder,
        head: FCMAEHead,
        sparse_encoder: bool = True,
    ) -> None:
        super().__init__()
        check_parts(backbone, neck)
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.sparse_encoder = sparse_encoder

    @classmethod
    def build(
        cls,
        arch: Arch = "tiny",
        in_channels: int = 3,
        decoder_channels: int = 512,
        decoder_depth: int = 1,
        norm_pix: bool = True,
        missing: Missing = "refuse",
        **backbone: Any,
    ) -> FCMAE:
        """Assemble the three parts with the paper's sizes.

        Args:
            arch: architecture of the encoder, see `ConvNeXtV2`.
            in_channels: channels of the images.
            decoder_channels: width of the decoder.
            decoder_depth: blocks of the decoder.
            norm_pix: normalise each target patch.
            missing: "ignore" leaves NaN, which stands for a missing value, out of the loss.
            **backbone: further arguments of `ConvNeXtV2`, such as ``mask_layout`` or ``with_cp``.
        """
        encoder = ConvNeXtV2(
            arch, in_channels, gap_before_final_norm=False, output_norms=False, **backbone
        )
        decoder = FCMAEDecoder(encoder.channels[-1], in_channels, decoder_channels, decoder_depth)
        return cls(encoder, decoder, FCMAEHead(norm_pix, missing))

    random_masking = staticmethod(random_masking)

    def patchify(self, x_NCHW: Tensor) -> Tensor:
        """Cut images into patches ``(N, H, W, P)``; see `mmconvnextv2.nn.patchify`."""
        return patchify(x_NCHW, CELL_SIZE)

    def unpatchify(self, patches_NHWP: Tensor) -> Tensor:
        """Put patches together to images ``(N, C, H, W)``, the inverse of `patchify`."""
        return unpatchify(patches_NHWP, CELL_SIZE)

    def forward_encoder(self, x_NCHW: Tensor, mask: Tensor | VisibleCells) -> Features:
        """Encode the visible cells.

        Returns:
            ``(N, C, H / 32, W / 32)``, zeros where cells are removed; for a decoder with skips the
            maps of all stages, finest first. Without `sparse_encoder`, removed cells hold features
            as well.
        """
        x_NCHW = self.head.fill_missing(x_NCHW)
        if self.sparse_encoder:
            maps = self.backbone(x_NCHW, mask)
        else:
            maps = self.backbone(_zero_removed(x_NCHW, mask))
        return maps[-1] if isinstance(self.neck.in_channels, int) else maps

    def forward_decoder(self, features: Features, mask_NHW: Tensor) -> Tensor:
        """Predict every patch from the encoder's features: ``(N, H, W, P)``."""
        return self.neck(features, mask_NHW)

    def forward_loss(self, x_NCHW: Tensor, prediction_NHWP: Tensor, mask_NHW: Tensor) -> Tensor:
        """Mean squared error on removed patches, a scalar; about 1 at the start of training."""
        return self.head(prediction_NHWP, x_NCHW, mask_NHW)

    def forward(
        self,
        inputs: Tensor,
        data_samples: list | None = None,
        mask: Tensor | VisibleCells | None = None,
        mode: str = "tensor",
    ) -> Any:
        """Run the model in one of OpenMMLab's three modes.

        Args:
            inputs: normalised images ``(N, C, H, W)``.
            data_samples: not used; part of OpenMMLab's calling convention.
            mask: boolean ``(N, H / 32, W / 32)``, True where a cell is removed, or a plan. Needed
                by "loss" and "predict"; "tensor" always encodes whole images.
            mode: "tensor" for the encoder's dense features, "loss" for ``dict(loss=scalar)``,
                "predict" for the reconstruction.

        Raises:
            ValueError: an unknown mode, or a mode that needs a mask without one.
        """
        if mode == "tensor":
            return self.backbone(self.head.fill_missing(inputs))
        if mode not in ("loss", "predict"):
            raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}")
        if mask is None:
            raise ValueError(
                f"mode {mode!r} needs a mask of shape (N, H / {CELL_SIZE}, W / {CELL_SIZE}); "
                f"draw one with random_masking"
            )
        cells = mask if isinstance(mask, VisibleCells) else VisibleCells.from_mask(mask)
        return self.loss(inputs, cells) if mode == "loss" else self.predict(inputs, cells)

    def loss(self, x_NCHW: Tensor, cells: VisibleCells) -> dict[str, Tensor]:
        """Loss of one masked batch, ``dict(loss=scalar)``.

        Raises:
            ValueError: the mask removes nothing, so there is nothing to predict.
        """
        if cells.num_visible == cells.mask_NHW.numel():
            raise ValueError(
                "the mask removes no cell of the batch, so there is no loss to compute"
            )
        prediction_NHWP = self._predict_patches(x_NCHW, cells)
        return dict(loss=self.forward_loss(x_NCHW, prediction_NHWP, cells.mask_NHW))

    def predict(self, x_NCHW: Tensor, cells: VisibleCells) -> Tensor:
        """Reconstruction of every patch, visible ones included: ``(N, C, H, W)``.

        The loss does not train the prediction of visible patches; paste the visible pixels over it
        for a picture.
        """
        return self.head.reconstruct(self._predict_patches(x_NCHW, cells), x_NCHW)

    def _predict_patches(self, x_NCHW: Tensor, cells: VisibleCells) -> Tensor:
        return self.forward_decoder(self.forward_encoder(x_NCHW, cells), cells.mask_NHW)


def _zero_removed(x_NCHW: Tensor, mask: Tensor | VisibleCells) -> Tensor:
    """Images with zeros, the mean of normalised pixels, in removed cells."""
    cells = mask if isinstance(mask, VisibleCells) else VisibleCells.from_mask(mask)
    cells.check_fits(x_NCHW)
    return x_NCHW.masked_fill(enlarge_mask(cells.mask_NHW, CELL_SIZE)[:, None], 0)


def check_parts(backbone: ConvNeXtV2, neck: Decoder) -> None:
    """Check that an encoder and a decoder make an FCMAE.

    Raises:
        ValueError: the encoder does not end in the raw feature map of its last stage, or the
            decoder expects other channels or predicts images of other channels.
    """
    last_stage = len(backbone.depths) - 1
    if (
        backbone.gap_before_final_norm
        or backbone.out_indices[-1] != last_stage
        or hasattr(backbone, f"norm{last_stage}")
    ):
        raise ValueError(
            "FCMAE trains on the raw feature map of the encoder's last stage: build the backbone "
            "with gap_before_final_norm=False, output_norms=False and out_indices=-1"
        )
    skips = not isinstance(neck.in_channels, int)
    needed = backbone.channels if skips else backbone.channels[-1]
    if neck.in_channels != needed:
        raise ValueError(
            f"the decoder's in_channels must be {needed}, the channels of the encoder's "
            f"{'four stages' if skips else 'last stage'}, got {neck.in_channels}"
        )
    if skips and len(backbone.out_indices) != len(backbone.depths):
        raise ValueError(
            f"a decoder with skips needs an encoder with out_indices=(0, 1, 2, 3), got "
            f"{backbone.out_indices}"
        )
    if neck.image_channels != backbone.in_channels:
        raise ValueError(
            f"the decoder's image_channels must be {backbone.in_channels}, the in_channels of the "
            f"encoder, got {neck.image_channels}"
        )
