"""Target and loss of FCMAE.

Shape suffixes: N batch, C channels, H and W pixels of an image or the grid of patches, P values of
a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmconvnextv2.nn.cells import CELL_SIZE
from mmconvnextv2.nn.missing import Missing, check_missing
from mmconvnextv2.nn.patchify import patchify, unpatchify

VARIANCE_EPS = 1e-6
"""Added to the variance of a patch before it is normalised."""


class FCMAEHead(nn.Module):
    """Mean squared error on removed patches, against per-patch normalised pixels.

    Paper, section 3 ("Reconstruction target"), as in MAE: each patch has its own mean subtracted
    and is divided by its own standard deviation, so a prediction of zero costs about 1.

    Args:
        norm_pix: normalise each target patch; False predicts the pixels as they are.
        missing: "refuse" takes images as complete, which the data preprocessor sees to. With
            "ignore" NaN stands for a missing value: statistics of patches and loss leave it out.

    Raises:
        ValueError: `missing` is something else.
    """

    def __init__(self, norm_pix: bool = True, missing: Missing = "refuse") -> None:
        super().__init__()
        check_missing(missing)
        self.norm_pix = norm_pix
        self.missing = missing

    def forward(self, prediction_NHWP: Tensor, x_NCHW: Tensor, mask_NHW: Tensor) -> Tensor:
        """Compute the loss, in at least float32.

        Args:
            prediction_NHWP: predicted patches ``(N, H, W, P)``.
            x_NCHW: images ``(N, C, H, W)``, as the preprocessor gives them.
            mask_NHW: boolean ``(N, H, W)``, True where a patch is removed.

        Returns:
            Scalar: the mean over removed patches; with missing values the mean over all values of
            removed patches that are known, 0 where none is.
        """
        patches_NHWP = patchify(x_NCHW, CELL_SIZE)
        target_NHWP = self._normalize(patches_NHWP)
        dtype = torch.promote_types(prediction_NHWP.dtype, torch.float32)
        if self.missing == "ignore":
            counted_NHWP = ~patches_NHWP.isnan() & mask_NHW[..., None]
            error_NHWP = prediction_NHWP.to(dtype) - target_NHWP
            squares_NHWP = torch.where(counted_NHWP, error_NHWP, 0).square()
            return squares_NHWP.sum() / counted_NHWP.sum().clamp(min=1)
        error_NHW = (prediction_NHWP.to(dtype) - target_NHWP).square().mean(dim=-1)
        return (error_NHW * mask_NHW).sum() / mask_NHW.sum()

    def fill_missing(self, x_NCHW: Tensor) -> Tensor:
        """Return what the encoder gets: 0, the mean, for a missing value that is ignored."""
        return torch.where(x_NCHW.isnan(), 0, x_NCHW) if self.missing == "ignore" else x_NCHW

    def reconstruct(self, prediction_NHWP: Tensor, x_NCHW: Tensor) -> Tensor:
        """Undo the per-patch normalisation and put the predicted patches together.

        The mean and deviation of a removed patch are taken from the image itself: they are not
        predicted. The picture shows texture and shape, not a guess of brightness.

        Returns:
            Images ``(N, C, H, W)`` in the pixel space of `x_NCHW`.
        """
        patches_NHWP = prediction_NHWP.to(x_NCHW.dtype)
        if self.norm_pix:
            mean, std = self._statistics(patchify(x_NCHW, CELL_SIZE))
            patches_NHWP = patches_NHWP * std + mean
        return unpatchify(patches_NHWP, CELL_SIZE)

    def _normalize(self, patches_NHWP: Tensor) -> Tensor:
        if not self.norm_pix:
            return patches_NHWP
        mean, std = self._statistics(patches_NHWP)
        return (patches_NHWP - mean) / std

    def _statistics(self, patches_NHWP: Tensor) -> tuple[Tensor, Tensor]:
        # The unbiased variance is what MAE and the official code use.
        if self.missing == "ignore":
            known_NHWP = ~patches_NHWP.isnan()
            count_NHW1 = known_NHWP.sum(dim=-1, keepdim=True)
            mean = patches_NHWP.nansum(dim=-1, keepdim=True) / count_NHW1.clamp(min=1)
            squares_NHWP = torch.where(known_NHWP, patches_NHWP - mean, 0).square()
            variance = squares_NHWP.sum(dim=-1, keepdim=True) / (count_NHW1 - 1).clamp(min=1)
        else:
            variance, mean = torch.var_mean(patches_NHWP, dim=-1, keepdim=True)
        return mean, (variance + VARIANCE_EPS).sqrt()
