"""COCO's metric with a value for a detector that finds nothing; needs mmdet, imported by name."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmdet.evaluation import CocoMetric
from mmdet.structures.mask import encode_mask_results
from mmengine.registry import METRICS


@METRICS.register_module()
class EmptySafeCocoMetric(CocoMetric):
    """mmdet's `CocoMetric`, which says 0 where not one object was found in the whole data set.

    mmdet's own logs an error then and returns no figure at all, so that whatever reads
    ``bbox_mAP`` after the first epoch of a run fails. Its arguments are the same.
    """

    def compute_metrics(self, results: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict:
        """Evaluate all images.

        Args:
            results: ground truth and prediction of each image, as `process` stores them.

        Returns:
            Average precision by name, ``bbox_mAP`` or ``segm_mAP_50``: a fraction, or -1 where the
            data set has no object of that size.
        """
        if results and not any(len(prediction["scores"]) for _, prediction in results):
            truth, prediction = results[0]
            results = [(truth, _false_alarm(truth, prediction)), *results[1:]]
        return super().compute_metrics(results)


def _false_alarm(truth: dict[str, Any], prediction: dict[str, Any]) -> dict[str, Any]:
    """Add what no truth can match and no rank can count: a score of 0 on an area of 0."""
    alarm = dict(
        bboxes=np.zeros((1, 4), np.float32),
        scores=np.zeros(1, np.float32),
        labels=np.zeros(1, np.int64),
    )
    if "masks" in prediction:
        alarm["masks"] = encode_mask_results(
            np.zeros((1, truth["height"], truth["width"]), np.uint8)
        )
    return {**prediction, **alarm}
