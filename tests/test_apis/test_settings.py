"""The table of settings: every number of images has a row, and rows say what they do."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmconvnextv2.apis.configs import config_path
from mmconvnextv2.apis.settings import (
    SETTINGS,
    base_lr_for,
    settings_for,
    settings_table,
    warmup_iterations,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("num_images", "epochs"),
    [(1, 400), (300, 400), (301, 300), (10_000, 100), (10_001, 60), (2_000_000, 30)],
)
def test_the_row_of_a_number_of_images(num_images: int, epochs: int) -> None:
    assert settings_for(num_images).epochs == epochs


def test_no_images() -> None:
    with pytest.raises(ValueError, match="at least one image, got 0"):
        settings_for(0)


def test_rows_follow_each_other() -> None:
    limits = [row.max_images for row in SETTINGS]
    assert limits[-1] is None
    assert limits[:-1] == sorted(limits[:-1])
    for row, larger in zip(SETTINGS, SETTINGS[1:], strict=False):
        assert row.epochs > larger.epochs
        assert row.images_a_step <= larger.images_a_step
        assert row.held_out_share >= larger.held_out_share


def test_the_rate_grows_with_the_square_root_of_the_batch() -> None:
    for row in SETTINGS:
        expected = 8e-4 * (row.batch_size * row.accumulate / 256) ** 0.5
        assert row.lr == pytest.approx(expected, rel=0.08)


def test_lengths_in_the_table_are_counted() -> None:
    """2,700 of 3,000 images are trained on: 42 whole batches of 64 an epoch, 200 epochs."""
    (line,) = (line for line in settings_table((10.0,)).splitlines() if "| 3,000 |" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:7] == ["3,000", "200", "64 x 1", "0.0004", "x 0.25", "0.6", "10%"]
    assert 2_700 // 64 * 200 == 8_400
    assert cells[7] == "8,400"
    assert 8_400 * 64 / 10 == 14 * 3600 + 56 * 60
    assert cells[8] == "14 h 56 min"


def test_every_row_but_the_last_takes_some_thousand_steps() -> None:
    for row in SETTINGS[:-1]:
        train = round(row.max_images * (1 - row.held_out_share))
        steps = row.epochs * (train // row.batch_size) / row.accumulate
        assert 2_500 <= steps <= 9_000, row


@pytest.mark.parametrize(
    ("epochs", "iterations", "accumulate", "expected"),
    # 500 steps in a long run; an eighth of a short one, in whole steps; none of seven.
    [(100, 150, 1, 500), (200, 150, 4, 2_000), (10, 16, 1, 20), (10, 18, 4, 20), (7, 1, 1, 0)],
)
def test_warmup(epochs: int, iterations: int, accumulate: int, expected: int) -> None:
    assert warmup_iterations(epochs, iterations, accumulate) == expected


def test_the_config_is_the_row_of_3000_images() -> None:
    cfg, row = (
        Config.fromfile(config_path("fcmae/fcmae_convnextv2-tiny_1xb64-continue_folder.py")),
        settings_for(3_000),
    )
    assert cfg.max_epochs == cfg.train_cfg.max_epochs == row.epochs
    assert cfg.train_dataloader.batch_size == row.images_a_step
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(row.lr)
    assert cfg.optim_wrapper.paramwise_cfg.encoder_rate == row.encoder_rate
    assert cfg.model.data_preprocessor.mask_ratio == row.mask_ratio
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.dataset.dataset.held_out_share == row.held_out_share


def test_the_page_has_this_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "your_images.md"
    assert settings_table() in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("images", "lr"), [(64, 3e-4), (256, 6e-4), (4096, 2.4e-3), (8192, 4.8e-3)]
)
def test_rate_of_a_step_falls_with_the_root_of_a_batch_below_the_papers(
    images: int, lr: float
) -> None:
    assert base_lr_for(images) * images / 256 == pytest.approx(lr)
