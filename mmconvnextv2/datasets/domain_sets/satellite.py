"""Satellite: four bands of Sentinel-2 in spyndex's wheel, and vegetation computed from them.

Shapes: H, W height and width in pixels, C channels.
"""

from __future__ import annotations

import json

import numpy as np

from mmconvnextv2.datasets.domain_sets.domain import (
    Domain,
    SourceImage,
    package_file,
    split_columns,
)

_VAL_WIDTH = 96
_GAP = 12


def label_vegetation(image_HWC: np.ndarray) -> np.ndarray:
    """Label every position by the normalised difference of near infrared and red (NDVI).

    Args:
        image_HWC: Reflectances above 0: blue, green, red, near infrared, (H, W, 4).

    Returns:
        uint8 (H, W): 1 where the difference is above 0.4, which is green vegetation, 0 elsewhere.
    """
    red_HW, infrared_HW = image_HWC[..., 2].astype(float), image_HWC[..., 3].astype(float)
    return ((infrared_HW - red_HW) / (infrared_HW + red_HW) > 0.4).astype(np.uint8)


def _load() -> list[SourceImage]:
    path = package_file(SATELLITE.distribution, SATELLITE.file)
    bands_CHW = np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.uint16)
    image_HWC = np.moveaxis(bands_CHW, 0, 2)
    return split_columns("sentinel2", image_HWC, label_vegetation(image_HWC), _VAL_WIDTH, _GAP)


SATELLITE = Domain(
    name="satellite",
    distribution="spyndex",
    file="spyndex/data/S2_10m.json",
    channels=("blue (B02)", "green (B03)", "red (B04)", "near infrared (B08)"),
    classes=("other", "vegetation"),
    patch_size=96,
    stride=48,
    source="Sentinel-2, bands of 10 m, reflectance times 10,000 (European Space Agency)",
    licence="free use with the notice: contains modified Copernicus Sentinel data; package: MIT",
    labels="computed: normalised difference of near infrared and red (NDVI) above 0.4",
    load=_load,
)
"""The domain, for `build_domain_set`."""
