"""The comparison that decides: recipes filled in, real runs of a narrow net, honest verdicts."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import narrowing
import numpy as np
import pytest
import tifffile
import torch
from mmengine.config import Config
from PIL import Image
from scipy import stats

from mmconvnextv2 import nn
from mmconvnextv2.apis import study
from mmconvnextv2.apis.comparison import SCRATCH, common_arch, compare_initializations, judge
from mmconvnextv2.apis.comparison_recipes import (
    FineTuning,
    RasterInput,
    count_validation_images,
    fine_tuning_config,
    recognize_task,
    with_weights,
)
from mmconvnextv2.apis.study import StudyMismatchError, Summary, train_and_validate
from mmconvnextv2.datasets.normalization import Normalization

pytestmark = pytest.mark.integration

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compare_initializations.py"
NARROW = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 16))
SIDE = 64
TINY = dict(steps=2, image_size=SIDE, batch_size=2, num_workers=0)
DEEP = RasterInput(
    Normalization([900.0], [400.0], [0.0], [3000.0], 4, "uint16", [0.1, 99.9], [0.0])
)


@pytest.fixture(autouse=True)
def _unchanged_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources may be edited while tests run; that code counts is tested with the study."""
    monkeypatch.setattr(study, "code_identity", lambda: {"mmconvnextv2": "as it is"})


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_initializations", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(path: Path, arch: dict = NARROW, seed: int = 0) -> Path:
    """An encoder of three channels as pre-training saves it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.ConvNeXtV2(arch=arch, output_norms=False)
    torch.save(dict(state_dict={f"backbone.{k}": v for k, v in net.state_dict().items()}), path)
    return path


def write_deep_maps(folder: Path) -> Path:
    """16-bit images of one channel, and maps with 0 for nothing and two classes."""
    random = np.random.default_rng(0)
    for part in ("training", "validation"):
        (folder / "images" / part).mkdir(parents=True)
        (folder / "annotations" / part).mkdir(parents=True)
        for i in range(3):
            labels_HW = np.kron(random.integers(0, 3, (4, 4)), np.ones((16, 16))).astype(np.uint8)
            noise_HW = random.integers(0, 500, labels_HW.shape)
            tifffile.imwrite(
                folder / "images" / part / f"{i}.tif",
                (900 * labels_HW.astype(int) + noise_HW).astype("u2"),
            )
            Image.fromarray(labels_HW).save(folder / "annotations" / part / f"{i}.png")
    return folder


def write_digits(folder: Path) -> Path:
    """Two classes that brightness tells apart, four pictures each and split."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for label, name in enumerate(("dark", "light")):
            (folder / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(0, 60, (50, 70, 3)) + 150 * label
                path = folder / part / name / f"{i}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def write_objects(folder: Path) -> Path:
    """COCO in the layout of the tool, from the tests' rectangles."""
    for part in ("train", "val"):
        ann_file = narrowing.write_coco(folder / "raw" / part, ["cell", "debris"])
        (ann_file.parent / "images").rename(folder / part)
        (folder / "annotations").mkdir(exist_ok=True)
        ann_file.rename(folder / "annotations" / f"instances_{part}.json")
    return folder


def train_with_weights_alone(cfg: Config) -> dict[str, float]:
    """Spare the tests the row from scratch, which runs through the same code."""
    if cfg.model.backbone.init_cfg is None:
        return {"mIoU": 0.0, "coco/segm_mAP": 0.0}
    return train_and_validate(cfg)


def narrower_detector() -> dict[str, object]:
    return {"model.roi_head.bbox_head.fc_out_channels": 16, "model.train_cfg.rcnn.sampler.num": 8}


def test_classification_from_scratch_and_from_weights(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data")
    given = dict(published=weights(tmp_path / "a.pth"))
    out = tmp_path / "out"
    found = compare_initializations(data, given, out, seeds=(0, 1), **TINY)
    assert (found.task, found.metric) == ("classification", "accuracy/top1")
    assert list(found.results) == [SCRATCH, "published"]
    content = json.loads((out / "comparison.json").read_text())
    assert (content["validation_images"], content["steps"]) == (8, 2)
    for name, cells in found.results.items():
        assert list(cells) == [0, 1]
        values = [cells[seed]["accuracy/top1"] for seed in (0, 1)]
        assert all(value % 12.5 == 0 for value in values), "eight images"
        row = content["rows"][name]
        assert row["values"] == values
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["std"] == pytest.approx(np.std(values, ddof=1))
    text = (out / "comparison.md").read_text()
    assert found.verdicts[0] in text
    assert "8 validation images" in text and "2 seeds" in text
    with Image.open(out / "comparison.png") as picture:
        assert picture.format == "PNG"

    # The rows did start from what they are named after.
    log = next((out / "published" / "seed0").glob("*/*.log")).read_text()
    assert str(given["published"]) in log
    assert ".pth: " not in next((out / SCRATCH / "seed0").glob("*/*.log")).read_text()

    # A run that was stopped between its last step and its validation ends as it would have.
    cell = out / "published" / "seed1" / "cell.json"
    cell.write_text(json.dumps(dict(json.loads(cell.read_text()), metrics=None)))
    again = compare_initializations(data, given, out, seeds=(0, 1), **TINY)
    assert again.results == found.results

    weights(tmp_path / "a.pth", seed=2)
    with pytest.raises(StudyMismatchError, match="content of .*a.pth"):
        compare_initializations(data, given, out, seeds=(0, 1), **TINY)


def test_16_bit_segmentation_with_an_inflated_stem(tmp_path: Path) -> None:
    data = write_deep_maps(tmp_path / "data")
    found = compare_initializations(
        data,
        dict(published=weights(tmp_path / "a.pth")),
        tmp_path / "out",
        seeds=(0,),
        raster=DEEP,
        inflate_stem="sum",
        reduce_zero_label=True,
        run=train_with_weights_alone,
        **TINY,
    )
    assert (found.task, found.metric) == ("segmentation", "mIoU")
    assert all(0 <= cells[0]["mIoU"] <= 100 for cells in found.results.values())
    assert "one seed has no spread" in found.verdicts[0]
    log = next((tmp_path / "out" / "published" / "seed0").glob("*/*.log")).read_text()
    assert "stem inflated from 3 to 1 channels (sum)" in log


def test_detection(tmp_path: Path) -> None:
    found = compare_initializations(
        write_objects(tmp_path / "data"),
        dict(published=weights(tmp_path / "a.pth")),
        tmp_path / "out",
        seeds=(0,),
        cfg_options=narrower_detector(),
        run=train_with_weights_alone,
        **TINY,
    )
    assert (found.task, found.metric) == ("detection", "coco/segm_mAP")
    assert all(0 <= cells[0]["coco/segm_mAP"] <= 1 for cells in found.results.values())


def settings(data: Path, task: str, **changes: object) -> FineTuning:
    return FineTuning(**{**dict(data=data, task=task, arch="nano", steps=200), **changes})


WRITERS: dict[str, Callable[[Path], Path]] = {
    "classification": write_digits,
    "detection": write_objects,
    "segmentation": write_deep_maps,
}


@pytest.mark.parametrize("task", WRITERS)
def test_rows_differ_in_their_weights_alone(task: str, tmp_path: Path) -> None:
    data = WRITERS[task](tmp_path)
    assert recognize_task(data) == task
    raster = DEEP if task == "segmentation" else None
    cfg = fine_tuning_config(settings(data, task, raster=raster, batch_size=32))
    assert cfg.train_cfg == dict(type="ResumableIterLoop", max_iters=200, val_interval=200)
    assert [s.end for s in cfg.param_scheduler] == [20, 200]
    assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size == 32
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(
        dict(classification=2e-3, detection=8e-3, segmentation=4e-3)[task]
    )
    assert cfg.train_dataloader.sampler.type == "StatelessInfiniteSampler"
    scratch, published = with_weights(cfg, None, "sum"), with_weights(cfg, Path("a.pth"), "sum")
    expected = dict(type="Pretrained", checkpoint="a.pth", inflate_stem="sum")
    assert published.model.backbone.pop("init_cfg") == expected
    assert scratch.model.backbone.pop("init_cfg") is None
    if task == "classification":
        assert "paramwise_cfg" not in scratch.optim_wrapper
    else:
        assert scratch.optim_wrapper.paramwise_cfg.pop("decay_rate") == 1.0
        assert published.optim_wrapper.paramwise_cfg.pop("decay_rate") == 0.7
    assert scratch.to_dict() == published.to_dict()
    assert count_validation_images(cfg) == dict(classification=8, detection=2, segmentation=3)[task]


def test_sizes_follow_the_architecture(tmp_path: Path) -> None:
    cfg = fine_tuning_config(settings(write_objects(tmp_path), "detection", arch="base"))
    assert cfg.model.neck.in_channels == [128, 256, 512, 1024]
    assert cfg.optim_wrapper.paramwise_cfg.num_layers == 12  # mmdet's number for 27 blocks
    assert cfg.model.roi_head.mask_head.num_classes == 2
    assert cfg.train_dataloader.dataset.dataset.metainfo.classes == ("cell", "debris")


@pytest.mark.parametrize("reduce_zero_label", [False, True])
def test_classes_of_maps_are_their_labels(reduce_zero_label: bool, tmp_path: Path) -> None:
    data = write_deep_maps(tmp_path)
    path = data / "annotations" / "training" / "0.png"
    labels_HW = np.asarray(Image.open(path)).copy()
    labels_HW[:8] = 255
    Image.fromarray(labels_HW).save(path)
    cfg = fine_tuning_config(
        settings(data, "segmentation", raster=DEEP, reduce_zero_label=reduce_zero_label)
    )
    expected = ("1", "2") if reduce_zero_label else ("0", "1", "2")
    assert cfg.val_dataloader.dataset.metainfo.classes == expected
    assert cfg.model.decode_head.num_classes == len(expected)
    assert cfg.val_dataloader.dataset.img_suffix == ".tif"


def test_deep_images_are_not_cut_to_8_bits(tmp_path: Path) -> None:
    data = write_deep_maps(tmp_path)
    with pytest.raises(ValueError, match=r"numbers of type uint16.*--normalization"):
        fine_tuning_config(settings(data, "segmentation"))


def test_different_classes_in_the_splits_are_refused(tmp_path: Path) -> None:
    data = write_digits(tmp_path)
    (data / "val" / "light").rename(data / "val" / "bright")
    with pytest.raises(ValueError, match=r"\['dark', 'light'\] and \['bright', 'dark'\]"):
        fine_tuning_config(settings(data, "classification"))


def test_unknown_layouts_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="laid out like no labelled set"):
        recognize_task(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        recognize_task(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        fine_tuning_config(settings(tmp_path, "classification", steps=0))


def test_weights_must_have_one_size(tmp_path: Path) -> None:
    wide = dict(NARROW, channels=(8, 8, 8, 24))
    files = dict(a=weights(tmp_path / "a.pth"), b=weights(tmp_path / "b.pth", wide))
    with pytest.raises(ValueError, match="different sizes cannot be compared: a is custom"):
        common_arch(files)
    assert common_arch(dict(a=files["a"])) == NARROW
    atto = weights(tmp_path / "c.pth", nn.ARCHITECTURES["atto"])
    assert common_arch(dict(c=atto)) == "atto"


@pytest.mark.parametrize("given", [{}, {SCRATCH: "a.pth"}])
def test_scratch_is_a_row_of_its_own(given: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one checkpoint, and none 'scratch'"):
        compare_initializations(tmp_path, given)


def summary(*values: float) -> Summary:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Summary(values, float(np.mean(values)), std)


def welch(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float]:
    """The interval by the textbook's formula."""
    variances = [np.var(x, ddof=1) / len(x) for x in (a, b)]
    freedom = sum(variances) ** 2 / sum(
        v**2 / (len(x) - 1) for v, x in zip(variances, (a, b), strict=True)
    )
    reach = stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5
    difference = np.mean(a) - np.mean(b)
    return difference - reach, difference + reach


def test_verdicts_are_welch_s() -> None:
    close, apart = (70.0, 74.0, 71.5), (60.0, 61.0, 60.5)
    low, high = welch(close, (69.0, 72.5, 70.0))
    text = judge("ours", summary(*close), "theirs", summary(69.0, 72.5, 70.0))
    assert f"{low:+.3g} to {high:+.3g}" in text and low < 0 < high
    assert "within the spread of the seeds" in text and "better" not in text
    low, high = welch(apart, close)
    text = judge("ours", summary(*apart), "theirs", summary(*close))
    assert f"{low:+.3g} to {high:+.3g}" in text and high < 0
    assert text.endswith("beyond the spread of the seeds, theirs is better than ours")


def test_verdicts_without_spread() -> None:
    assert "one seed has no spread" in judge("a", summary(90.0), "b", summary(10.0))
    assert "a is better than b" in judge("a", summary(9.0, 9.0), "b", summary(1.0, 1.0))
    assert "within the spread" in judge("a", summary(1.0, 1.0), "b", summary(1.0, 1.0))


def test_the_command_line(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_deep_maps(tmp_path / "data")
    normalization = DEEP.normalization.save(tmp_path / "normalization.json")
    configs: list[Config] = []

    def run(cfg: Config) -> dict[str, float]:
        configs.append(cfg)
        start = cfg.model.backbone.init_cfg
        return dict(mIoU=50.0 if start else 20.0 + cfg.randomness.seed)

    api = tool.compare_initializations
    monkeypatch.setattr(tool, "compare_initializations", lambda *a, **k: api(*a, **k, run=run))
    options = "--seeds 1 2 3 --steps 40 --image-size 64 --reduce-zero-label".split()
    arguments = [
        str(data),
        "--weights",
        f"published={weights(tmp_path / 'a.pth')}",
        f"continued={weights(tmp_path / 'b.pth', seed=1)}",
        f"--work-dir={tmp_path / 'out'}",
        f"--normalization={normalization}",
        "--missing=ignore",
        "--cfg-options",
        "model.decode_head.channels=8",
        *options,
    ]
    assert tool.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| scratch | 3 | 22 ± 1 |" in printed and "| published | 3 | 50 ± 0 |" in printed
    assert "published is better than scratch" in printed
    assert "continued is better than scratch" in printed
    assert "continued against published: +0 (95% interval +0 to +0): within" in printed
    assert str(tmp_path / "out" / "comparison.png") in printed
    assert len(configs) == 9 and {cfg.randomness.seed for cfg in configs} == {1, 2, 3}
    cfg = configs[0]
    assert cfg.model.backbone.in_channels == 1 and cfg.model.decode_head.channels == 8
    assert cfg.train_cfg.max_iters == 40
    load = cfg.train_dataloader.dataset.dataset.pipeline[0]
    assert (load.type, load.dtype, load.missing) == ("LoadRaster", "uint16", "ignore")

    assert tool.main(arguments) == 0
    assert "[9/9] continued, seed 3: finished before" in capsys.readouterr().out
    assert len(configs) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "--weights", "a.pth"], "--weights takes NAME=CHECKPOINT"),
        (["data", "--weights", "a=1", "a=2"], "with different names, got 'a=2'"),
        (["nowhere", "--weights", "a=a.pth"], "there is no folder"),
        (["data", "--weights", "a=nowhere.pth"], "nowhere.pth"),
        (["data", "--weights", "a=a.pth", "--missing", "ignore"], "need --normalization"),
    ],
)
def test_errors_are_one_line(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "data")
    weights(tmp_path / "a.pth")
    assert tool.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("compare_initializations.py: ") and message in error
    assert not (tmp_path / "work_dirs").exists()
