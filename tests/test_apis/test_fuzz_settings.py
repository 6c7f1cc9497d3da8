"""Settings of any value from a command line: a complete config, or one error that names them."""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from mmengine.config import Config

from mmconvnextv2.apis import pretrain
from mmconvnextv2.apis.launch import add_launch_arguments, load_config
from mmconvnextv2.nn import ARCHITECTURES

pytestmark = pytest.mark.unit

DEFAULTS = dict(
    arch="tiny",
    epochs=100,
    batch_size=64,
    accumulate=1,
    base_lr=1.5e-4,
    image_size=224,
    mask_ratio=0.6,
    num_workers=2,
    amp=False,
)
VALUES = dict(
    arch=st.sampled_from([*ARCHITECTURES, "small", ""]),
    epochs=st.integers(-2, 500),
    batch_size=st.integers(-2, 500),
    accumulate=st.integers(-1, 9),
    base_lr=st.one_of(st.floats(), st.floats(1e-6, 1e-2)),
    image_size=st.one_of(st.sampled_from([64, 96, 224, 384]), st.integers(-64, 400)),
    mask_ratio=st.floats(),
    num_workers=st.integers(-1, 4),
    amp=st.booleans(),
)


@st.composite
def changed_settings(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(list(VALUES)), unique=True, max_size=3))
    return DEFAULTS | {name: draw(VALUES[name]) for name in names}


@pytest.fixture(scope="module")
def _config_is_read_once() -> Any:
    """Reading the config from its file takes longer than filling it in."""
    read = Config.fromfile(pretrain.config_path(pretrain.FOLDER_CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.Config, "fromfile", lambda _: copy.deepcopy(read))
        yield


def is_possible(s: dict[str, Any]) -> bool:
    """The documented ranges."""
    return (
        s["arch"] in ARCHITECTURES
        and min(s["epochs"], s["batch_size"], s["accumulate"]) >= 1
        and 0 < s["mask_ratio"] < 1
        and 0 < s["base_lr"] * s["batch_size"] * s["accumulate"] / 256 < math.inf
        and s["image_size"] >= 64
        and s["image_size"] % 32 == 0
        and s["num_workers"] >= 0
    )


@pytest.mark.fault(8, "arguments of pretrain.py of any size", "a complete config, or one error")
@pytest.mark.usefixtures("_config_is_read_once")
@given(settings=changed_settings())
def test_arguments_of_pretrain(settings: dict[str, Any]) -> None:
    try:
        cfg = pretrain.pretrain_config("photos", 640, **settings)
    except ValueError as error:
        assert not is_possible(settings), error
        changed = [name for name, value in settings.items() if value != DEFAULTS[name]]
        assert any(name in str(error) for name in changed) and "\n" not in str(error)
        return
    event("a config")
    assert is_possible(settings)
    assert cfg.train_cfg.max_epochs == settings["epochs"]


CONFIG = """
lr = 0.1
model = dict(type="FCMAE", backbone=dict(arch="atto", depths=(1, 2)), names=["a", "b"])
pipeline = [dict(type="Load"), dict(type="Crop", scale=224)]
work_dir = "out"
"""
keys = st.one_of(
    st.sampled_from(
        "lr model model.backbone model.backbone.arch model.backbone.arch.x model.names.0 "
        "model.names.5 model.names.x pipeline.0 pipeline.1.scale pipeline.7.type pipeline.x "
        "new new.a.b .. a.. work_dir.x".split()
    ),
    st.text("ab.0=_²", max_size=6),
)
values = st.one_of(st.text("[](),=ab1.' ", max_size=12), st.text(max_size=6))
options = st.lists(
    st.one_of(st.tuples(keys, values).map("=".join), st.text("=[,a-", max_size=4)),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return path


@pytest.mark.fault(8, "--cfg-options of any text", "a config, a usage error, or one clear error")
@given(options=options)
def test_cfg_options(config_file: Path, options: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    add_launch_arguments(parser)
    try:
        args = parser.parse_args([str(config_file), "--cfg-options", *options])
    except SystemExit as stop:
        assert stop.code == 2
        return
    try:
        cfg = load_config(args)
    except ValueError as error:
        assert "cfg_options" in str(error) or "cfg-options" in str(error)
        return
    assert isinstance(cfg, Config)
