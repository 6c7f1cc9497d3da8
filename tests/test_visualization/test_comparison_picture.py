"""The picture of a comparison: a dot a run at its place, in the order of the rows."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label

from mmconvnextv2.visualization.comparison import plot_comparison
from mmconvnextv2.visualization.duplicates import to_picture

pytestmark = pytest.mark.unit

TEXTS = dict(title="classification", xlabel="accuracy/top1")


def dots(path: Path) -> np.ndarray:
    """Centres (y, x) of the round dark blue spots."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    ink = np.abs(pixels - (0x1F, 0x4E, 0x8C)).max(axis=2) < 12
    spots, count = label(ink)
    centres = []
    for i in range(1, count + 1):
        y, x = np.nonzero(spots == i)
        if 0.7 < np.ptp(y) / max(1, np.ptp(x)) < 1.4 and len(y) > 40:
            centres.append((y.mean(), x.mean()))
    return np.array(centres)


def test_dots_stand_in_proportion(tmp_path: Path) -> None:
    rows = {"scratch": [10.0, 14.0], "published": [50.0, 58.0], "continued": [80.0, 90.0]}
    path = plot_comparison(rows, tmp_path / "sub" / "a.png", **TEXTS)
    centres = dots(path)
    assert len(centres) == 6
    centres = centres[np.argsort(centres[:, 1])]
    values = np.sort(np.concatenate(list(rows.values())))
    scale, offset = np.polyfit(values, centres[:, 1], 1)
    np.testing.assert_allclose(scale * values + offset, centres[:, 1], atol=2)
    heights = centres[:, 0].reshape(3, 2).mean(axis=1)
    assert (np.diff(heights) > 20).all(), "the first row stands at the top"


def test_equal_values_do_not_hide_each_other(tmp_path: Path) -> None:
    path = plot_comparison({"a": [1.0, 5.0, 5.0, 5.0], "b": [2.0]}, tmp_path / "a.png", **TEXTS)
    centres = dots(path)
    rightmost = centres[centres[:, 1] > centres[:, 1].max() - 3]
    assert len(rightmost) == 3


def test_leaves_no_pyplot_state(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    plot_comparison({"a": [1.0]}, tmp_path / "a.png", **TEXTS)
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize("rows", [{}, {"a": [1.0], "b": []}])
def test_refuses_rows_without_values(tmp_path: Path, rows: dict) -> None:
    with pytest.raises(ValueError, match="every row needs a value"):
        plot_comparison(rows, tmp_path / "a.png", **TEXTS)
    assert not list(tmp_path.iterdir())


def test_any_range_becomes_visible() -> None:
    ramp = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    dark = np.asarray(to_picture((ramp * 900 + 100).astype(np.uint16)))
    assert dark.shape == (20, 20, 3) and dark.min() == 0 and dark.max() == 255
    assert (dark[..., 0] == dark[..., 2]).all()
    eight_bits = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(np.asarray(to_picture(eight_bits)), eight_bits)
    holed = ramp[..., None].repeat(5, axis=2)
    holed[3, 4] = np.nan
    assert (np.asarray(to_picture(holed))[3, 4] == 0).all()
