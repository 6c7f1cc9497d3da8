"""Elevation: the 16-bit height map in matplotlib's wheel, and landforms computed from it.

Shapes: H, W height and width in pixels.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mmconvnextv2.datasets.domain_sets.domain import (
    Domain,
    SourceImage,
    package_file,
    split_columns,
)

# Side of the neighbourhood that a position is compared with, in pixels: about the width of the
# valleys of this map.
_NEIGHBOURHOOD = 31

# A ridge or a valley differs from the mean of its neighbourhood by more than this share of the
# standard deviation of all such differences.
_THRESHOLD = 0.5

_VAL_WIDTH = 128
_GAP = _NEIGHBOURHOOD // 2 + 1


def label_landforms(height_HW: np.ndarray) -> np.ndarray:
    """Label every position by its height above the mean of its neighbourhood.

    This is the topographic position index (Weiss 2001) with its usual thresholds of half a standard
    deviation.

    Args:
        height_HW: Heights, (H, W).

    Returns:
        uint8 (H, W): 0 valley, 1 slope, 2 ridge.
    """
    height_HW = height_HW.astype(np.float64)
    index_HW = height_HW - ndimage.uniform_filter(height_HW, _NEIGHBOURHOOD)
    bound = _THRESHOLD * index_HW.std()
    return np.where(index_HW < -bound, 0, np.where(index_HW > bound, 2, 1)).astype(np.uint8)


def _load() -> list[SourceImage]:
    path = package_file(ELEVATION.distribution, ELEVATION.file)
    with np.load(path) as archive:
        # Stored signed; all heights here are positive, so uint16 holds them exactly.
        height_HW = archive["elevation"]
    assert height_HW.min() >= 0
    image_HWC = height_HW.astype(np.uint16)[..., None]
    return split_columns("jacksboro", image_HWC, label_landforms(height_HW), _VAL_WIDTH, _GAP)


ELEVATION = Domain(
    name="elevation",
    distribution="matplotlib",
    file="matplotlib/mpl-data/sample_data/jacksboro_fault_dem.npz",
    channels=("height above sea level, metres",),
    classes=("valley", "slope", "ridge"),
    patch_size=96,
    stride=48,
    source="Shuttle Radar Topography Mission (NASA, USGS): the Jacksboro fault, Tennessee",
    licence="public domain (United States government)",
    labels="computed: height above or below the mean of the 31 px around, in three classes",
    load=_load,
)
"""The domain, for `build_domain_set`."""
