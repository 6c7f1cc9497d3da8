"""Where Mask R-CNN handles coordinates, keep float32 under bfloat16 autocast.

This module needs mmdet, so that a detection config imports it by name.

Shape suffixes: R regions, N batch, C channels, A anchors a position, H and W positions.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmpretrain.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class FullPrecisionRPNHead(RPNHead):
    """mmdet's `RPNHead` with float32 outputs; its arguments are the same.

    bfloat16 scores tie by the hundreds near 1, and mmcv's NMS does not take them.
    """

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict at one pyramid level.

        Args:
            x: features ``(N, C, H, W)`` of any floating type.

        Returns:
            float32 objectness logits ``(N, A, H, W)`` and box deltas ``(N, 4 A, H, W)``.
        """
        scores_NAHW, deltas_NAHW = super().forward_single(x)
        return scores_NAHW.float(), deltas_NAHW.float()


@MODELS.register_module()
class FullPrecisionRoIExtractor(SingleRoIExtractor):
    """mmdet's `SingleRoIExtractor` on float32 features; its arguments are the same.

    mmdet casts the regions to the type of the features. In bfloat16 a coordinate between 512 and
    1024 is then rounded to a multiple of 4 pixels, and mmcv's RoIAlign has no bfloat16 kernel.
    """

    def forward(
        self,
        feats: Sequence[Tensor],
        rois: Tensor,
        roi_scale_factor: float | None = None,
    ) -> Tensor:
        """Crop the features of each region from the pyramid level that suits its size.

        Args:
            feats: pyramid levels ``(N, C, H, W)``, finest first, of any floating type.
            rois: regions ``(R, 5)``: index of the image, then x1, y1, x2, y2 in pixels.
            roi_scale_factor: enlarge the regions about their centres.

        Returns:
            float32 ``(R, C, output_size, output_size)``.
        """
        # mmcv's RoIAlign reads channels-last memory as if it were (N, C, H, W).
        feats = tuple(x.float().contiguous() for x in feats)
        return super().forward(feats, rois.float(), roi_scale_factor)
