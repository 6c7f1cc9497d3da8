"""The reader of logged scalars on files written by hand, smoothing against loops, the picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmconvnextv2.visualization.curves import plot_loss_curve, read_scalars, smooth

pytestmark = pytest.mark.unit


def write_scalars(path: Path, *records: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_reads_steps_and_values_of_one_key(tmp_path) -> None:
    path = tmp_path / "scalars.json"
    path.write_text(
        '{"lr": 0.001, "data_time": 0.01, "loss": 1.01, "time": 0.2, "epoch": 1, "iter": 10, '
        '"memory": 0, "step": 10}\n'
        '{"accuracy/top1": 51.5, "step": 1}\n'
        "\n"
        '{"lr": 0.002, "loss": NaN, "epoch": 1, "iter": 20, "step": 20}\n'
        '{"lr": 0.003, "loss": 0.75, "epoch": 2, "iter": 30, "step": 30}\n'
    )
    steps, losses = read_scalars(path)
    assert steps == [10, 20, 30]
    assert losses[0] == 1.01 and np.isnan(losses[1]) and losses[2] == 0.75
    assert read_scalars(path, key="lr") == ([10, 20, 30], [0.001, 0.002, 0.003])


def test_a_resumed_run_replaces_what_it_repeats(tmp_path) -> None:
    write_scalars(
        tmp_path / "20260101_000000" / "vis_data" / "scalars.json",
        *({"loss": float(step), "step": step} for step in (10, 20, 30, 40)),
    )
    write_scalars(
        tmp_path / "20260101_120000" / "vis_data" / "scalars.json",
        *({"loss": step + 0.5, "step": step} for step in (25, 35)),
    )
    write_scalars(tmp_path / "20260101_130000" / "vis_data" / "scalars.json", {"lr": 1, "step": 1})
    assert read_scalars(tmp_path) == ([10, 20, 25, 35], [10.0, 20.0, 25.5, 35.5])
    assert read_scalars(tmp_path / "20260101_120000") == ([25, 35], [25.5, 35.5])


def test_an_unfinished_last_line_is_left_out_and_a_broken_one_is_an_error(tmp_path) -> None:
    path = tmp_path / "scalars.json"
    path.write_text('{"loss": 1.0, "step": 1}\n{"loss": 0.')
    assert read_scalars(path) == ([1], [1.0])
    path.write_text('{"loss": 1.0, "step": 1}\n{"loss": 0.\n{"loss": 0.5, "step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_scalars(path)


def test_says_what_is_missing(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="vis_data/scalars.json"):
        read_scalars(tmp_path)
    path = write_scalars(tmp_path / "scalars.json", {"lr": 1.0, "step": 1})
    with pytest.raises(ValueError, match="no record with the key 'loss'"):
        read_scalars(path)
    write_scalars(path, {"loss": 1.0, "iter": 1})
    with pytest.raises(ValueError, match="line 1 has 'loss' but no 'step'"):
        read_scalars(path)


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_smooth_equals_a_loop(window: int) -> None:
    values = np.random.default_rng(0).normal(size=23)
    values[7] = np.nan
    values[11] = np.inf
    expected = []
    for i in range(23):
        reach = min(window // 2, i, 22 - i)
        near = values[i - reach : i + reach + 1]
        near = near[np.isfinite(near)]
        expected.append(near.mean() if len(near) else np.nan)
    np.testing.assert_allclose(smooth(values, window), expected, rtol=1e-12)


def test_smooth_keeps_a_straight_line() -> None:
    line = np.linspace(3.0, -2.0, 40)
    np.testing.assert_allclose(smooth(line, 15), line, atol=1e-12)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        smooth(line, 0)


def blue_rows(path: Path) -> np.ndarray:
    """Mean height (row) of dark blue ink in every column that has some, from left to right."""
    picture = Image.open(path).convert("RGBA")  # its background is transparent
    on_white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    pixels = np.asarray(on_white.convert("RGB")).astype(int)
    ink = (pixels[..., 2] - pixels[..., 0] > 60) & (pixels[..., 0] < 80)
    ink[: len(ink) // 5] = False  # the legend
    rows = np.arange(len(ink))[:, None]
    used = ink.any(axis=0)
    return (rows * ink).sum(axis=0)[used] / ink.sum(axis=0)[used]


def test_a_falling_loss_falls_in_the_picture(tmp_path) -> None:
    steps = list(range(0, 1000, 10))
    losses = [1.0 - 0.4 * step / 1000 for step in steps]
    path = plot_loss_curve(steps, losses, tmp_path / "curves" / "loss.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 800
    rows = blue_rows(path)
    assert len(rows) > 400 and (np.diff(rows) >= -0.6).all() and rows[-1] - rows[0] > 100


def test_one_value_and_values_that_are_not_finite_can_be_drawn(tmp_path) -> None:
    assert plot_loss_curve([5], [0.7], tmp_path / "one.png").stat().st_size > 1000
    losses = [1.0, float("nan"), 0.8, float("inf")] * 20
    assert plot_loss_curve(range(80), losses, tmp_path / "nan.png").stat().st_size > 1000


def test_plot_leaves_no_pyplot_state(tmp_path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    plot_loss_curve([1, 2], [1.0, 0.5], tmp_path / "a.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize("steps,losses", [([], []), ([1, 2], [0.5])])
def test_plot_refuses_nothing_and_unequal_numbers(tmp_path, steps: list, losses: list) -> None:
    with pytest.raises(ValueError, match=f"{len(steps)} steps and {len(losses)} values"):
        plot_loss_curve(steps, losses, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
