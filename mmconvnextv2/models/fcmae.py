"""FCMAE as an OpenMMLab self-supervised algorithm."""

from __future__ import annotations

from typing import Any

from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from mmconvnextv2 import nn
from mmconvnextv2.nn import FCMAEDecoder, FCMAEHead, VisibleCells
from mmconvnextv2.nn.decoder_transformer import FCMAETransformerDecoder
from mmconvnextv2.nn.decoder_unet import FCMAEUNetDecoder
from mmconvnextv2.nn.fcmae import check_parts

MODELS.register_module(module=FCMAEDecoder)
MODELS.register_module(module=FCMAEUNetDecoder)
MODELS.register_module(module=FCMAETransformerDecoder)
MODELS.register_module(module=FCMAEHead)


@MODELS.register_module()
class FCMAE(nn.FCMAE, BaseSelfSupervisor):
    """`mmconvnextv2.nn.FCMAE` with parts built from configs and data samples as predictions.

    Args:
        backbone: config of the encoder.
        neck: config of the decoder; its ``in_channels`` are those of the encoder's last stage, or
            for a UNet with skips those of all stages.
        head: config of target and loss.
        data_preprocessor: config of the normalisation and the mask.
        sparse_encoder: compute on visible cells alone; False feeds the dense encoder images with
            zeros in removed cells.
        init_cfg: OpenMMLab's weight loading for the whole model.

    Raises:
        ValueError: encoder and decoder do not fit, or the head takes no missing values and the
            preprocessor lets them pass.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        neck: dict[str, Any],
        head: dict[str, Any] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        sparse_encoder: bool = True,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        # BaseSelfSupervisor builds the parts and stores them under the names that the plain class
        # gives them, so the plain constructor has nothing left to do.
        BaseSelfSupervisor.__init__(
            self,
            backbone=backbone,
            neck=neck,
            head=head or dict(type="FCMAEHead"),
            data_preprocessor=data_preprocessor or dict(type="FCMAEDataPreprocessor"),
            init_cfg=init_cfg,
        )
        check_parts(self.backbone, self.neck)
        self.sparse_encoder = sparse_encoder
        lets_missing_pass = getattr(self.data_preprocessor, "missing", "refuse") == "ignore"
        if lets_missing_pass and self.head.missing != "ignore":
            raise ValueError(
                "the data preprocessor lets missing values pass (missing='ignore'), and the head "
                "would turn them into a loss of NaN: set missing='ignore' in FCMAEHead as well"
            )

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[DataSample] | None = None,
        mask: Tensor | VisibleCells | None = None,
        mode: str = "tensor",
    ) -> Any:
        """Run the model; see `mmconvnextv2.nn.FCMAE.forward`.

        Returns:
            The encoder's dense features for the mode "tensor", ``dict(loss=scalar)`` for "loss",
            and for "predict" one data sample an image with the fields ``reconstruction``
            ``(C, H, W)``, in the normalised pixel space, and ``mask`` ``(H / 32, W / 32)``.
        """
        output = super().forward(inputs, data_samples, mask, mode)
        if mode != "predict":
            return output
        assert mask is not None  # the plain class refuses to predict without one
        mask_NHW = mask.mask_NHW if isinstance(mask, VisibleCells) else mask
        samples = data_samples or [DataSample() for _ in range(len(inputs))]
        for sample, image_CHW, mask_HW in zip(samples, output, mask_NHW, strict=True):
            sample.set_field(image_CHW, "reconstruction")
            sample.set_field(mask_HW, "mask")
        return samples
