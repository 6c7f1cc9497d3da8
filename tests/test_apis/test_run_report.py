"""The report of a run of each task, made of folders laid out by hand and models never trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import unescape
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmconvnextv2.apis.configs import config_path
from mmconvnextv2.apis.run_figures import last_metrics, metric_rows, run_charts, run_tiles
from mmconvnextv2.apis.run_record import read_run
from mmconvnextv2.apis.run_report import report
from mmconvnextv2.datasets.sample_set import (
    ClassificationSpec,
    DetectionSpec,
    PretrainSpec,
    SegmentationSpec,
    build_sample_set,
)
from mmconvnextv2.visualization.reconstruction import reconstruction_grid

pytestmark = pytest.mark.integration

ARCH = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])
START = "20260314_150926"
LOG = """2026/03/14 15:09:26 - mmengine - INFO -
------------------------------------------------------------
System environment:
    sys.platform: linux
    Python: 3.10.4 (main, Mar 31 2022, 08:41:55) [GCC 7.5.0]
    CUDA available: True
    GPU 0,1: Some Accelerator
    PyTorch: 2.5.1
    PyTorch compiling details: PyTorch built with:
  - GCC 9.3

Runtime environment:
    GPU number: 2
------------------------------------------------------------

2026/03/14 15:09:26 - mmengine - INFO - Config:
    GPU 7: not this
2026/03/14 15:09:27 - mmengine - INFO - software: mmconvnextv2 0.0.1; mmcv 2.1.0; Processor Some CPU
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sample_set(
        tmp_path_factory.mktemp("sample") / "set",
        pretrain=PretrainSpec(num_train=6),
        classification=ClassificationSpec(num_train=10, num_val=10),
        detection=DetectionSpec(num_train=2, num_val=2),
        segmentation=SegmentationSpec(num_train=2, num_val=2),
    )


def write_run(
    folder: Path,
    cfg: Config,
    *records: dict,
    checkpoint: bool = True,
    history: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Path:
    """Lay out what a run leaves, with a model that has not been trained."""
    vis_data = folder / START / "vis_data"
    vis_data.mkdir(parents=True)
    cfg.dump(vis_data / "config.py")
    (vis_data / "scalars.json").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / START / f"{START}.log").write_text(LOG)
    if checkpoint:
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        classes = tuple(f"digit_{digit}" for digit in range(10))
        if cfg.default_scope == "mmseg":
            classes = ("background", *classes)
        meta = dict(epoch=2, iter=20, dataset_meta=dict(classes=classes))
        scalars = {
            f"train/{name}": dict(values=[float(x) for x in v]) for name, v in history.items()
        }
        hub = dict(log_scalars=scalars)
        content = dict(meta=meta, state_dict=model.state_dict(), message_hub=hub, optimizer={})
        torch.save(content, folder / "epoch_2.pth")
    return folder


def pretraining_config(data: Path) -> Config:
    cfg = Config.fromfile(config_path("fcmae/fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py"))
    cfg.model.backbone.arch = ARCH
    cfg.model.neck.update(in_channels=32, num_channels=16)
    cfg.train_dataloader.dataset.dataset.data_root = str(data / "pretrain")
    cfg.train_dataloader.dataset.dataset.pipeline[0].scale = 64
    return cfg


def sample_config(task: str, data: Path) -> Config:
    """A sample config of one task with a narrow encoder and the data in its place."""
    names = {
        "classification": "convnextv2/convnextv2-atto_fcmae-pre_1xb16-coslr-18e_sample.py",
        "detection": "mask_rcnn/mask-rcnn_convnextv2-atto_fpn_1xb4-1e_sample.py",
        "segmentation": "upernet/convnextv2-atto_upernet_1xb16-1000i_sample.py",
    }
    cfg = Config.fromfile(config_path(names[task]))
    cfg.model.backbone.update(arch=ARCH, init_cfg=None)
    if task == "classification":
        cfg.model.head.in_channels = 32
    for part in ("neck", "decode_head"):
        if task != "classification" and part in cfg.model:
            cfg.model[part].in_channels = ARCH["channels"]
    for loader in (cfg.train_dataloader.dataset, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f"{data / task}/"
    return cfg


def step(iteration: int, loss: float, **more: float) -> dict:
    return {"loss": loss, "base_lr": 1e-4, "iter": iteration, "step": iteration, **more}


def text_of(page: Path) -> str:
    """What a reader sees, without the folded config."""
    html = page.read_text(encoding="utf-8")
    html = re.sub(r"<style>.*?</style>|<pre>.*?</pre>", "", html, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def pictures_of(page: Path) -> int:
    return page.read_text(encoding="utf-8").count("data:image/png;base64,")


def test_a_pretraining_run_shows_what_it_reconstructs(data: Path, tmp_path: Path) -> None:
    records = [step(10, 1.0, time=0.5, epoch=1), step(20, 0.25, time=0.3, epoch=2)]
    run = write_run(tmp_path / "run", pretraining_config(data), *records)
    page = report(run)
    assert page == run / "report.html"
    text = text_of(page)
    assert "Pre-training report ConvNeXt V2 · FCMAE" in text
    assert "Training images, by epoch_2.pth. From left to right: original, masked" in text
    assert pictures_of(page) == 6 and "Not shown" not in text
    assert "Measured on 6 training images" in text
    assert "Masked 60 % of the cells" in text and "Image size 64 px" in text
    assert "started 14 March 2026, 15:09" in text
    assert (
        "Python 3.10.4" in text
        and "torch 2.5.1" in text
        and "GPU Some Accelerator " in text
        and "mmconvnextv2 0.0.1 " in text
        and "Processor Some CPU " in text
        and "not this" not in text
    )
    # 2 processes of 32 images; 10 steps of 0.5 s and 10 of 0.3 s are 8 s, and 0.4 s is between.
    assert "Time in training steps 8 s 20 steps of 64 images" in text
    assert "Images a second 160 median step, 0.4 s" in text


def test_pictures_that_a_run_has_drawn_are_taken_where_nothing_is_held_out(
    data: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", pretraining_config(data), checkpoint=False)
    x = torch.zeros(2, 3, 64, 64)
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    (run / "reconstructions").mkdir()
    grid = reconstruction_grid(x, x, mask, torch.zeros(3), torch.ones(3))
    grid.save(run / "reconstructions" / "epoch_0120.png")
    page = report(run, tmp_path / "elsewhere" / "page.html")
    text = text_of(page)
    assert "Training images, drawn at epoch 120." in text and pictures_of(page) == 2
    assert "The run has logged nothing yet." in text
    assert "Not shown: The run has not saved a checkpoint yet." in text
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "task,metrics,expected",
    [
        ("classification", {"accuracy/top1": 62.5}, ("Top-1 accuracy 62.5 %", "classifier")),
        (
            "detection",
            {"coco/bbox_mAP": 0.25, "coco/segm_mAP_50": 0.5, "coco/bbox_mAP_l": -1.0},
            ("Box AP 0.250", "Mask AP50 0.500", "nothing found"),
        ),
        ("segmentation", {"mIoU": 33.3, "aAcc": 90.0}, ("Mean IoU 33.3 %", "UperNet")),
    ],
)
def test_a_fine_tuned_run_shows_what_it_finds(
    task: str,
    metrics: dict,
    expected: tuple[str, ...],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg = sample_config(task, data)
    run = write_run(tmp_path / "run", cfg, step(10, 1.0), step(20, 0.5), {**metrics, "step": 20})
    capsys.readouterr()
    page = report(run)
    text = text_of(page)
    assert re.findall(r"Not shown: .{200}", text) == []
    assert all(part in text for part in expected), expected
    assert "large" not in text and "-1.0" not in text, "objects of that size do not occur"
    assert capsys.readouterr().out == "", "pycocotools says nothing of the files that it reads"
    held_out = {"classification": 10, "detection": 2, "segmentation": 2}[task]
    assert pictures_of(page) == min(8, held_out)
    assert f"Measured on {held_out} held-out images" in text
    html = page.read_text(encoding="utf-8")
    if task == "segmentation":
        named = re.findall(r'<i style="background:rgb\(([\d,]+)\)"></i>([^<]+)', html)
        metainfo = cfg.val_dataloader.dataset.metainfo
        assert named, "an untrained model tints something"
        for colour, name in named:
            wanted = metainfo.palette[metainfo.classes.index(name)]
            assert colour == ",".join(str(channel) for channel in wanted)
    assert "https://" not in html.replace(cfg.pretty_text, "") and "<script" not in html


def test_missing_data_is_named_and_the_rest_is_shown(data: Path, tmp_path: Path) -> None:
    cfg = pretraining_config(tmp_path / "gone")
    text = text_of(report(write_run(tmp_path / "run", cfg, step(10, 0.75), step(20, 0.5))))
    assert text.count("Not shown: the run's images are not at") == 2 and "gone/pretrain" in text
    assert "Loss, mean of 10 steps up to iteration 20 0.500 0.750 at iteration 10" in text


def test_curves_and_metrics_come_from_what_was_logged(data: Path, tmp_path: Path) -> None:
    cfg = sample_config("classification", data)
    losses = np.linspace(2.0, 1.0, 40)
    records = [step(i + 1, float(loss), epoch=1, grad_norm=5.0) for i, loss in enumerate(losses)]
    validations = [{"accuracy/top1": value, "step": i} for i, value in ((1, 50.0), (2, 70.0))]
    validations.append({"accuracy/top1": 65.0, "step": 3})
    run = read_run(write_run(tmp_path, cfg, *records, *validations, checkpoint=False))
    loss, accuracy, rate, norm = run_charts(run)
    assert loss.size == "hero" and list(loss.lines[0].values) == losses.tolist()
    np.testing.assert_allclose(loss.lines[1].values, losses, rtol=1e-9)  # a straight line
    assert (accuracy.title, accuracy.xlabel) == ("Top-1 accuracy", "epoch")
    assert list(accuracy.lines[0].values) == [50.0, 70.0, 65.0]
    assert [len(rate.lines), rate.title, norm.title] == [1, "Learning rate", "Gradient norm"]
    assert metric_rows(run)[1:] == [("Top-1 accuracy", "65.0 %", "70.0 %", "2")]
    tiles = {tile.label: tile.value for tile in run_tiles(run)}
    assert tiles == {
        "Top-1 accuracy": "65.0 %",
        "Loss, mean of 10 steps up to iteration 40": "1.000",
    }


def test_figures_are_over_every_step_as_those_of_a_finished_run(data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    loss, seconds = rng.uniform(1, 2, 37), rng.uniform(0.1, 0.9, 37)
    logged = [  # as mmengine does: every 7 steps, the mean of at most 10
        step(n, loss[max(0, n - 10) : n].mean(), time=seconds[max(0, n - 10) : n].mean())
        for n in range(7, 37, 7)
    ]
    cfg = sample_config("classification", data)
    history = dict(loss=loss, time=seconds)
    run = read_run(write_run(tmp_path / "run", cfg, *logged, history=history))
    tiles = {tile.label: (tile.value, tile.hint) for tile in run_tiles(run)}
    last = f"{sum(loss[27:]) / 10:.3f}"
    median = sorted(seconds)[18]  # 18 steps are quicker and 18 slower
    # The batch of the config, and the log's two processes.
    speed = 2 * cfg.train_dataloader.batch_size / median
    assert tiles == {
        "Loss, mean of the last 10 steps": (last, f"{loss[0]:.3f} at the first step"),
        "Time in training steps": (f"{round(sum(seconds))} s", "37 steps of 32 images"),
        "Images a second": (f"{speed:.3g}", f"median step, {median:.3g} s"),
    }
    charts = {chart.title: chart.value for chart in run_charts(run)}
    assert charts["Loss"] == f"{last}, mean of the last 10 steps"
    assert charts["Seconds a step"] == f"median {median:.3g}"


def test_an_older_checkpoint_does_not_stand_for_the_steps_after_it(
    data: Path, tmp_path: Path
) -> None:
    cfg = sample_config("classification", data)
    logged = [step(10, 1.5, time=0.5), step(20, 1.25, time=0.25), step(30, 0.75, time=0.125)]
    history = dict(loss=[9.0] * 29, time=[9.0] * 29)
    run = read_run(write_run(tmp_path / "run", cfg, *logged, history=history))
    tiles = {tile.label: tile.value for tile in run_tiles(run)}
    assert tiles["Loss, mean of 10 steps up to iteration 30"] == "0.750"
    assert tiles["Time in training steps"] == "9 s"  # 10 * (0.5 + 0.25 + 0.125)
    (chart,) = (chart for chart in run_charts(run) if chart.title == "Seconds a step")
    assert chart.value == "median 0.25"


def test_a_metric_without_objects_is_left_out(data: Path, tmp_path: Path) -> None:
    cfg = sample_config("detection", data)
    nothing = {"coco/bbox_mAP": -1.0, "coco/bbox_mAP_l": -1.0, "coco/AR_l@1000": -1.0, "step": 2}
    run = read_run(write_run(tmp_path, cfg, step(10, 1.0), nothing, checkpoint=False))
    assert [tile.label[:4] for tile in run_tiles(run)] == ["Loss"]
    assert metric_rows(run)[1:] == [] and last_metrics(run) == []


def test_a_folder_without_a_run_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        report(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        report(file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no run: no config.py, no log"):
        report(tmp_path / "empty")
    write_run(tmp_path / "demo" / "fcmae", pretraining_config(data), checkpoint=False)
    with pytest.raises(FileNotFoundError, match="there are runs in fcmae below it"):
        report(tmp_path / "demo")
