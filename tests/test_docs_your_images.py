"""The page on own images: its commands are ones that the tools take, its config trains."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model
from PIL import Image

from mmconvnextv2.apis.settings import settings_table
from mmconvnextv2.datasets.domain_sets import DOMAINS
from mmconvnextv2.datasets.normalization import measure_normalization

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/your_images.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Every command of the page that starts a tool."""
    lines = "".join(text for kind, text in BLOCKS if kind == "bash").replace("\\\n", " ")
    return [shlex.split(line) for line in lines.splitlines() if line.startswith("python ")]


def parse(monkeypatch, words):
    """Let a tool read its command line."""
    path = ROOT / words[1]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", words[1:])
    # Some tools take the arguments of the process by themselves, others from their caller.
    takes = module.parse_args.__code__.co_argcount
    return module.parse_args(*[words[2:]] * takes)


@pytest.mark.parametrize("words", commands(), ids=lambda words: Path(words[1]).stem)
def test_every_command_is_understood(monkeypatch, words):
    parse(monkeypatch, words)


def test_every_step_has_its_command():
    tools = {Path(words[1]).name for words in commands()}
    steps = re.findall(r"^\| \[\d\. .*?\| `(\w+\.py)`", PAGE, flags=re.MULTILINE)
    assert len(steps) == 7 and set(steps) <= tools


def test_settings_are_those_of_the_tool():
    begin, end = "<!-- settings: begin -->\n", "\n<!-- settings: end -->"
    assert PAGE.partition(begin)[2].partition(end)[0] == settings_table()


def test_domains_are_those_of_the_tool():
    rows = re.findall(r"^\| `(\w+)` \|.* \| (.*?) \|$", PAGE, flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(DOMAINS)
    for name, package in rows:
        assert DOMAINS[name].distribution in package
        assert f"of {DOMAINS[name].patch_size} px" in PAGE


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Bright squares on dark noise, 16 bit, in the layout of the page."""
    root = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for split, count in (("training", 4), ("validation", 2)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((80, 80), np.uint8)
            mask[20:60, 10 * index : 10 * index + 40] = 1
            pixels = rng.integers(900, 1500, mask.shape) + 30_000 * mask.astype(int)
            tifffile.imwrite(root / f"images/{split}/{index}.tif", pixels.astype(np.uint16))
            Image.fromarray(mask).save(root / f"annotations/{split}/{index}.png")
    return root


def test_the_config_trains_and_predicts(labelled, tmp_path):
    figures = tmp_path / "normalization.json"
    measure_normalization(labelled / "images/training").save(figures)
    text = next(text for kind, text in BLOCKS if "_base_" in text)
    for written, here in {
        "configs/": f"{ROOT}/configs/",
        "data/domains/nuclei/segmentation": str(labelled),
        "work_dirs/nuclei/continue/normalization.json": str(figures),
        '"work_dirs/nuclei/continue/epoch_400.pth"': "None",
    }.items():
        assert written in text
        text = text.replace(written, here)
    file = tmp_path / "my_segmentor.py"
    file.write_text(text.replace("init_cfg=dict(checkpoint=pretrained)", "init_cfg=None"))
    cfg = Config.fromfile(file)
    cfg.work_dir = str(tmp_path / "run")
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.checkpoint.interval = 2
    runner = Runner.from_cfg(cfg)
    sample = runner.build_dataloader(cfg.val_dataloader).dataset[0]
    # Normalised from 16 bit: about mean 0 and deviation 1, of one channel, many levels.
    assert tuple(sample["inputs"].shape) == (1, 96, 96)
    assert abs(sample["inputs"].mean()) < 0.5 and 0.5 < sample["inputs"].std() < 2
    assert len(sample["inputs"].unique()) > 256
    runner.train()
    assert 0 <= runner.message_hub.get_scalar("val/mIoU").current() <= 100
    model = init_model(str(file), str(tmp_path / "run/iter_2.pth"), device="cpu")
    image = labelled / "images/validation/1.tif"
    mask_HW = inference_model(model, str(image)).pred_sem_seg.data[0].numpy()
    assert mask_HW.shape == (80, 80) and set(np.unique(mask_HW)) <= {0, 1}
