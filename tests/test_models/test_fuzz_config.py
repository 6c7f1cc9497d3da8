"""Configs of FCMAE with any value at any place: a model that trains, or an error that names it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from mmpretrain.registry import MODELS

import mmconvnextv2.models  # noqa: F401  (registers)

pytestmark = pytest.mark.unit

CONFIG: dict[str, dict[str, Any]] = dict(
    backbone=dict(
        type="ConvNeXtV2",
        arch=dict(depths=(1, 1, 1, 1), channels=(2, 3, 4, 5)),
        in_channels=3,
        out_indices=-1,
        drop_path_rate=0.0,
        gap_before_final_norm=False,
        output_norms=False,
        frozen_stages=0,
        mask_layout="packed",
        layer_scale_init_value=0.0,
    ),
    neck=dict(type="FCMAEDecoder", in_channels=5, image_channels=3, num_channels=8, depth=1),
    head=dict(type="FCMAEHead", norm_pix=True, missing="refuse"),
    data_preprocessor=dict(
        type="FCMAEDataPreprocessor",
        mean=(120.0, 115.0, 100.0),
        std=(58.0, 57.0, 57.0),
        mask_ratio=0.6,
        cell_size=32,
        clip=None,
        missing="refuse",
    ),
)
PLACES = [(part, key) for part in CONFIG for key in CONFIG[part] if key != "type"]
FEATURES = dict(gap_before_final_norm=st.booleans(), output_norms=st.booleans())

numbers = st.one_of(
    st.integers(-3, 6), st.sampled_from([32, 64, 96, 0.5, 1.5, -0.5, float("nan"), float("inf")])
)
words = st.sampled_from(["", "atto", "giant", "packed", "masked", "ignore", "refuse", "3", "0.6"])
lists = st.lists(numbers, max_size=5) | st.lists(st.lists(numbers, max_size=3), max_size=3)
archs = st.fixed_dictionaries(
    {"depths": st.lists(numbers, min_size=3, max_size=5) | words},
    optional={"channels": st.lists(numbers, min_size=4, max_size=4), "width": numbers},
)
anything = st.one_of(st.none(), st.booleans(), numbers, words, lists, archs)
changes = st.dictionaries(st.sampled_from(PLACES), anything, min_size=1, max_size=2)


@pytest.mark.fault(8, "configs with any value at any place", "a model that trains, or an error")
@given(changes=changes, seed=st.integers(0, 99))
def test_any_value_at_any_place(changes: dict[tuple[str, str], Any], seed: int) -> None:
    config = copy.deepcopy(CONFIG)
    for (part, key), value in changes.items():
        if not (key in FEATURES and not isinstance(value, bool)):
            config[part][key] = value
    names = {key for _, key in changes} | {"encoder", "images", "cells"}
    try:
        model = MODELS.build(dict(type="FCMAE", **config))
    except (ValueError, ImportError) as error:
        # mmengine puts the classes on the way in front.
        message = str(error).rpartition(".py: ")[2]
        assert any(name in message for name in names), error
        return
    channels = int(config["backbone"]["in_channels"])
    images = list(torch.randint(0, 256, (2, channels, 96, 96)).to(torch.uint8))
    torch.manual_seed(seed)
    try:
        batch = model.data_preprocessor(dict(inputs=images))
        loss = model(**batch, mode="loss")["loss"]
    except ValueError as error:
        assert any(name in str(error) for name in names), error
        return
    event("trained on")
    assert loss.isfinite()
