"""SimMIM around a ConvNet, whose encoder takes no mask: removed pixels become a token.

Shape suffixes: N batch, C channels, H and W pixels of an image, or patches of a mask.
"""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models.selfsup import SimMIM
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmconvnextv2.nn.cells import enlarge_mask


@MODELS.register_module()
class ConvNetSimMIM(SimMIM):
    """SimMIM (https://arxiv.org/abs/2111.09886) with an encoder that sees whole images.

    mmpretrain's `SimMIM` leaves it to its encoder, a Swin, to put a token in the place of removed
    patches. Here that happens to the pixels: one learned colour replaces all that are removed, and
    the encoder stays what it is. So the mask may be finer than a cell of FCMAE, and the encoder's
    checkpoint is that of any other training.

    Args:
        backbone: config of the encoder; the last of its feature maps is decoded.
        neck: config of the decoder, such as mmpretrain's ``SimMIMLinearDecoder``.
        head: config of the loss, mmpretrain's ``SimMIMHead``; its ``patch_size`` is the side of a
            mask's patch in pixels.
        data_preprocessor: config of the normalisation; ``SelfSupDataPreprocessor`` when None.
        init_cfg: OpenMMLab's weight loading for the whole model.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        neck: dict[str, Any],
        head: dict[str, Any],
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        self.mask_token = nn.Parameter(torch.empty(1, 3, 1, 1))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def fill(self, x_NCHW: Tensor, mask_NHW: Tensor) -> Tensor:
        """Put the token in the place of removed pixels.

        Args:
            x_NCHW: normalised images ``(N, 3, H, W)``.
            mask_NHW: ``(N, H / p, W / p)`` for patches of p pixels, 1 or True where removed.

        Returns:
            Images ``(N, 3, H, W)``.

        Raises:
            ValueError: mask, images and the head's patch size do not fit.
        """
        p = self.head.patch_size
        expected = (len(x_NCHW), x_NCHW.shape[2] / p, x_NCHW.shape[3] / p)
        if tuple(mask_NHW.shape) != expected:
            raise ValueError(
                f"images {tuple(x_NCHW.shape)} and patches of {p} pixels need a mask of the shape "
                f"(N, H / {p}, W / {p}), got {tuple(mask_NHW.shape)}: make input_size and "
                f"model_patch_size of SimMIMMaskGenerator and patch_size of the head fit"
            )
        removed_NHW = enlarge_mask(mask_NHW.bool(), p)
        return torch.where(removed_NHW[:, None], self.mask_token.to(x_NCHW.dtype), x_NCHW)

    def reconstruct(self, x_NCHW: Tensor, mask_NHW: Tensor) -> Tensor:
        """Predict all pixels from those that are left.

        Args:
            x_NCHW: normalised images ``(N, 3, H, W)``.
            mask_NHW: as in `fill`.

        Returns:
            Normalised images ``(N, 3, H, W)``.
        """
        return self.neck(self.backbone(self.fill(x_NCHW, mask_NHW))[-1])

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Compare the prediction with the removed pixels.

        Args:
            inputs: normalised images ``(N, 3, H, W)``.
            data_samples: one an image, with its ``mask`` as `SimMIMMaskGenerator` draws it.
            **kwargs: not used; the signature is mmpretrain's.

        Returns:
            ``dict(loss=scalar)``.
        """
        mask_NHW = torch.stack([sample.mask for sample in data_samples])
        prediction_NCHW = self.reconstruct(inputs, mask_NHW)
        return dict(loss=self.head.loss(prediction_NCHW, inputs, mask_NHW))
