"""The pictures of the analyses hold what they are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import gaussian_kde

from mmconvnextv2.analysis.block_features import BlockName
from mmconvnextv2.analysis.published_curves import PAPER_CURVES
from mmconvnextv2.visualization.activation_maps import (
    ChannelMaps,
    draw_channels,
    plot_activation_maps,
    shown_channels,
)
from mmconvnextv2.visualization.class_selectivity import density, plot_class_selectivity
from mmconvnextv2.visualization.feature_diversity import plot_feature_diversity

pytestmark = pytest.mark.unit


def test_diversity_beside_the_papers_curves(tmp_path: Path, figures: list[Figure]) -> None:
    curves = {"mine": [0.5, 0.3, 0.4], "other": [0.2, 0.1]}
    path = plot_feature_diversity(curves, tmp_path / "a" / "diversity.png", 0.35)
    (axes,) = figures[0].axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["mine"].get_xdata()) == [0, 0.5, 1]
    assert list(lines["other"].get_ydata()) == [0.2, 0.1]
    for name, values in PAPER_CURVES.items():
        assert tuple(lines[f"paper: {name}"].get_ydata()) == values
    names = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert names[:2] == ["mine", "other"] and len(names) == 7
    assert Image.open(path).format == "PNG"
    with pytest.raises(ValueError, match="no curve"):
        plot_feature_diversity({}, path, 0.35)


def test_density_is_one_and_that_of_scipy_inside() -> None:
    random = np.random.default_rng(0)
    grid = np.linspace(0, 1, 1001)
    for values in (random.beta(1, 4, 300), np.zeros(20), np.array([0.0, 1.0, 0.2])):
        assert np.trapezoid(density(values, grid), grid) == pytest.approx(1, abs=1e-3)
    inside = random.normal(0.5, 0.05, 200)
    quartiles = np.quantile(inside, (0.25, 0.75))
    width = 0.9 * min(inside.std(), np.diff(quartiles)[0] / 1.349) * 200**-0.2
    width = max(width, 0.02)
    expected = gaussian_kde(inside, width / inside.std(ddof=1))(grid)
    np.testing.assert_allclose(density(inside, grid), expected, atol=1e-6)


def test_a_panel_for_each_block_of_any_encoder(tmp_path: Path, figures: list[Figure]) -> None:
    values = np.random.default_rng(0).random(40)
    first = {BlockName(1, 1): values, BlockName(2, 1): values, BlockName(2, 2): []}
    plot_class_selectivity({"V1": first, "V2": {BlockName(2, 2): values}}, tmp_path / "s.png")
    panels = [axes for axes in figures[0].axes if axes.get_visible()]
    titles = ["stage 1, block 1", "stage 2, block 1", "stage 2, block 2"]
    assert [axes.get_title(loc="left") for axes in panels] == titles
    # A curve and the dot of the mean for each encoder that has the block.
    assert [len(axes.get_lines()) for axes in panels] == [2, 2, 2]
    assert panels[2].get_lines()[1].get_xdata()[0] == pytest.approx(values.mean())
    with pytest.raises(ValueError, match="no block"):
        plot_class_selectivity({}, tmp_path / "s.png")


def channel_maps(count: int) -> ChannelMaps:
    maps = np.ones((count, 3, 3)) * np.linspace(0, 1, count)[:, None, None]
    dead, saturated = np.zeros((2, count), dtype=bool)
    dead[0], saturated[-1] = True, True
    return ChannelMaps(maps, dead, saturated)


def test_channels_are_framed_squares_on_one_scale() -> None:
    panel = np.asarray(draw_channels(channel_maps(16))).astype(int)
    step = panel.shape[0] // 4
    assert panel.shape == (4 * step, 4 * step, 3)
    corners = [tuple(panel[row * step, column * step]) for row in range(4) for column in range(4)]
    assert corners[0] == (214, 39, 40) and corners[-1] == (255, 150, 20)
    assert set(corners[1:-1]) == {(255, 255, 255)}
    middles = panel[step // 2 :: step, step // 2 :: step].reshape(16, 3)
    # The green of viridis grows with the value, from one common darkest to one brightest.
    assert (np.diff(middles[:, 1]) > 0).all()


def test_which_channels_are_shown() -> None:
    assert shown_channels(10).tolist() == list(range(10))
    shown = shown_channels(512)
    assert len(set(shown.tolist())) == 64 and (shown[0], shown[-1]) == (0, 511)


def test_maps_of_several_encoders(tmp_path: Path, figures: list[Figure]) -> None:
    images = [Image.new("RGB", (32, 32)), Image.new("RGB", (32, 32))]
    panels = {"V1": [channel_maps(5)] * 2, "V2": [channel_maps(64)] * 2}
    path = plot_activation_maps(images, panels, tmp_path / "maps.png", "title")
    assert [axes.get_title() for axes in figures[0].axes[:3]] == ["image", "V1", "V2"]
    assert len(figures[0].axes) == 6 and Image.open(path).format == "PNG"
    with pytest.raises(ValueError, match="2 images"):
        plot_activation_maps(images, {"V1": [channel_maps(5)]}, path, "title")
