"""Fine-tuning and predicting in one call each: what they fill in, and that their figures agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import narrowing
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as coco_mask

from mmconvnextv2 import nn
from mmconvnextv2.apis.finetune import finetune, finetune_config
from mmconvnextv2.apis.predict import Predictor, predict
from mmconvnextv2.apis.results import RunResult
from mmconvnextv2.datasets.annotation_checks_coco import AnnotationError
from mmconvnextv2.datasets.image_scan import TooFewImagesError

pytestmark = pytest.mark.integration

ARCH = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 16])
SMALL = dict(epochs=2, batch_size=2, image_size=64, num_workers=0)
FILLED = dict(
    init=None,
    arch="atto",
    epochs=None,
    batch_size=None,
    effective_batch=None,
    lr=None,
    image_size=None,
    num_workers=0,
    amp=False,
)


@pytest.fixture(scope="module", autouse=True)
def _no_layout_of_configs() -> Iterator[None]:
    """Configs are written as they are: laying their text out takes half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, True))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "encoder.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.ConvNeXtV2(arch=ARCH, output_norms=False)
    torch.save(dict(state_dict={f"backbone.{k}": v for k, v in net.state_dict().items()}), path)
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set for each task, with pictures as PNG, which every library reads alike."""
    root = tmp_path_factory.mktemp("labelled")
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for label, name in enumerate(("dark", "light")):
            folder = root / "classification" / part / name
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(0, 60, (50, 70, 3)) + 150 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        ann_file = narrowing.write_coco(root / "raw" / part, ["cell", "debris"], count=3)
        detection = root / "detection"
        (detection / "annotations").mkdir(parents=True, exist_ok=True)
        (ann_file.parent / "images").rename(detection / part)
        ann_file.rename(detection / "annotations" / f"instances_{part}.json")
    for part in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / "segmentation" / kind / part).mkdir(parents=True)
        for i in range(3):
            labels_HW = np.kron(random.integers(0, 3, (4, 5)), np.ones((16, 16))).astype(np.uint8)
            image = Image.fromarray(labels_HW * 100).convert("RGB")
            image.save(root / "segmentation" / "images" / part / f"{i}.png")
            mask = Image.fromarray(labels_HW)
            mask.save(root / "segmentation" / "annotations" / part / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def classified(
    labelled: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunResult:
    out = tmp_path_factory.mktemp("runs") / "classes"
    return finetune("classification", labelled / "classification", out, init=weights, **SMALL)


def test_defaults_follow_data_and_width(labelled: Path) -> None:
    cfg = finetune_config("segmentation", labelled / "segmentation", **FILLED)
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.train_dataloader.batch_size == 3, "there are no more images"
    assert cfg.model.data_preprocessor.size == (96, 96), "80 pixels, rounded to even 32s"
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-3 * 3 / 16)
    assert cfg.model.decode_head.channels == 64
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == 1.0, "a random encoder learns throughout"

    wide = {**FILLED, "arch": "tiny", "batch_size": 2, "effective_batch": 8, "epochs": 3}
    cfg = finetune_config("detection", labelled / "detection", **wide)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-3 * 8 / 4 * 320 / 768)
    assert cfg.optim_wrapper.accumulative_counts == 4
    assert cfg.auto_scale_lr.base_batch_size == 8
    assert cfg.model.roi_head.mask_head.conv_out_channels == 256
    assert cfg.param_scheduler[-1].end == 3, "three epochs of one batch; the third image is left"
    cfg = finetune_config("detection", labelled / "detection", **{**wide, "lr": 1e-5, "amp": True})
    assert cfg.optim_wrapper.optimizer.lr == 1e-5
    assert cfg.optim_wrapper.type == "AutocastOptimWrapper"


def test_classification(classified: RunResult, labelled: Path, tmp_path: Path) -> None:
    """The pictures' classes have the accuracy that validation measured."""
    assert classified.checkpoint.name == "epoch_2.pth"
    images = labelled / "classification" / "val"
    found = predict(images, classified.out, tmp_path / "out", device="cpu")
    content = json.loads(found.predictions.read_text())
    assert content["classes"] == ["dark", "light"]
    right = [Path(entry["image"]).parent.name == entry["class"] for entry in content["images"]]
    assert len(right) == 8
    assert 100 * np.mean(right) == pytest.approx(classified.metrics["accuracy/top1"])
    for entry, picture in zip(content["images"], found.pictures, strict=True):
        assert entry["score"] == entry["best"][0][1] >= entry["best"][1][1]
        assert picture == tmp_path / "out" / entry["picture"]
        with Image.open(picture) as drawn:
            assert drawn.size == (280, 200), "enlarged, for the text to be readable"
    assert found.pictures[0].name == "dark_0.png"
    some = predict(images, classified.checkpoint, tmp_path / "two", num_images=2, device="cpu")
    assert [picture.name for picture in some.pictures] == ["dark_0.png", "light_3.png"]


def test_segmentation(labelled: Path, weights: Path, tmp_path: Path) -> None:
    """The maps have the mIoU that validation measured."""
    data = labelled / "segmentation"
    settings = dict(SMALL, epochs=1)
    result = finetune("segmentation", data, tmp_path / "run", init=weights, **settings)
    predictor = Predictor(result.out, device="cpu")
    intersections, unions = np.zeros(3), np.zeros(3)
    for path in sorted((data / "images" / "validation").iterdir()):
        picture = Image.open(path)
        sample = predictor.find(picture)
        found_HW = sample.pred_sem_seg.data[0].numpy()
        truth_HW = np.asarray(Image.open(data / "annotations" / "validation" / path.name))
        for label in range(3):
            intersections[label] += ((found_HW == label) & (truth_HW == label)).sum()
            unions[label] += ((found_HW == label) | (truth_HW == label)).sum()
        shares = predictor.figures(sample)["shares"]
        expected = {str(label): np.mean(found_HW == label) for label in np.unique(found_HW)}
        assert shares == pytest.approx(expected, abs=1e-4)
        pixels_HW3 = np.asarray(predictor.draw(picture, sample))[::4, ::4]
        untinted = np.asarray(picture.convert("RGB").resize((320, 256), 3))[::4, ::4]
        assert np.array_equal(pixels_HW3[found_HW == 0], untinted[found_HW == 0]), "background"
        assert not np.array_equal(pixels_HW3[found_HW > 0], untinted[found_HW > 0])
    # An IoU of a class that neither has is left out of the mean.
    with np.errstate(invalid="ignore"):
        expected = 100 * np.nanmean(intersections / unions)
    assert result.metrics["mIoU"] == pytest.approx(expected, abs=0.01)


def test_detection(labelled: Path, weights: Path, tmp_path: Path) -> None:
    """Boxes and masks are those of mmdet's own inference."""
    options = {
        "model.roi_head.bbox_head.fc_out_channels": 16,
        "model.train_cfg.rcnn.sampler.num": 8,
        "model.test_cfg.rpn.max_per_img": 10,
        "model.test_cfg.rcnn.max_per_img": 5,
    }
    settings = dict(SMALL, epochs=1)
    data = labelled / "detection"
    result = finetune(
        "detection", data, tmp_path / "run", init=weights, **settings, cfg_options=options
    )
    assert "coco/segm_mAP" in result.metrics
    # No object has 96 x 96 pixels, for which COCO's value is -1.
    assert not [name for name in result.metrics if name.endswith("mAP_l")]
    assert all(0 <= value <= 1 for name, value in result.metrics.items() if "mAP" in name)
    image = data / "val" / "1.png"
    found = predict(image, result.out, tmp_path / "out", score=0.0, device="cpu")
    (entry,) = json.loads(found.predictions.read_text())["images"]
    model = init_detector(str(result.config), str(result.checkpoint), device="cpu")
    theirs = inference_detector(model, str(image)).pred_instances
    assert len(entry["objects"]) == len(theirs) > 0
    for ours, i in zip(entry["objects"], range(len(theirs)), strict=True):
        assert ours["class"] == ("cell", "debris")[theirs.labels[i]]
        assert ours["box"] == pytest.approx(theirs.bboxes[i].tolist(), abs=0.06)
        mask_HW = coco_mask.decode(ours["mask"]).astype(bool)
        assert np.array_equal(mask_HW, theirs.masks[i].numpy())
    strict = predict(image, result.out, tmp_path / "none", score=1.0, device="cpu")
    assert json.loads(strict.predictions.read_text())["images"][0]["objects"] == []


def test_resume_and_another_set_of_classes(
    classified: RunResult, labelled: Path, weights: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(labelled / "classification", tmp_path / "data")
    out = shutil.copytree(classified.out, tmp_path / "run")
    again = finetune("classification", data, out, init=weights, **SMALL, resume=True)
    assert again.metrics == classified.metrics
    for part in ("train", "val"):
        shutil.copytree(data / part / "dark", data / part / "dim")
    with pytest.raises(
        ValueError, match=r"tells 2 classes apart \(dark, light\).* has 3 \(dark, d"
    ):
        finetune("classification", data, out, init=weights, **SMALL, resume=True)
    shutil.rmtree(data / "val" / "dim")
    with pytest.raises(ValueError, match="needs the same classes"):
        finetune("classification", data, tmp_path / "other", init=weights, **SMALL)
    (data / "val" / "dim").mkdir()
    for file in (data / "train" / "dim").iterdir():
        file.unlink()
    with pytest.raises(TooFewImagesError, match="no image in .*dim"):
        finetune("classification", data, tmp_path / "other", init=weights, **SMALL)
    assert not (tmp_path / "other").exists()


def test_labels_that_are_missing_or_do_not_fit(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"has no annotations/instances_train\.json"):
        finetune("detection", labelled / "classification", out)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        finetune("detection", tmp_path / "nowhere", out)
    with pytest.raises(ValueError, match="task must be one of classification, detection"):
        finetune("keypoints", labelled / "detection", out)
    data = shutil.copytree(labelled / "detection", tmp_path / "data")
    train, val = (data / "annotations" / f"instances_{part}.json" for part in ("train", "val"))
    content = json.loads(val.read_text())
    content["categories"].pop()
    val.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"2 categories \(cell, debris.* 1 \(cell"):
        finetune("detection", data, out)
    shutil.copy(labelled / "detection" / "annotations" / "instances_val.json", val)
    content = json.loads(train.read_text())
    for found in content["annotations"]:
        del found["segmentation"]
    train.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="6 of 6 objects have no mask"):
        finetune("detection", data, out)
    train.write_text("boxes")
    with pytest.raises(AnnotationError, match="cannot be read as JSON"):
        finetune("detection", data, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(arch="atto"), "arch='atto' was asked for, and init"),
        (dict(epochs=0), "epochs must be at least 1"),
        (dict(lr=0.0), "lr must be positive"),
        (dict(image_size=0), "image_size must be at least 1"),
        (dict(batch_size=1), "segmentation needs a batch_size of 2 or more"),
        (dict(batch_size=4), "3 training images do not fill one batch of 4"),
        (dict(effective_batch=3), "must be a multiple of batch_size=2"),
        (dict(tracker="tensorboard"), "TensorBoard is always on"),
        (dict(init="nowhere.pth"), "does not exist"),
    ],
)
def test_bad_arguments(
    changes: dict, message: str, labelled: Path, weights: Path, tmp_path: Path
) -> None:
    settings = {**SMALL, "init": weights, **changes}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        finetune("segmentation", labelled / "segmentation", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_predict_refuses(classified: RunResult, labelled: Path, tmp_path: Path) -> None:
    images = labelled / "classification" / "val"
    with pytest.raises(ValueError, match="score must lie in 0 to 1"):
        predict(images, classified.out, tmp_path, score=50)
    with pytest.raises(ValueError, match="num_images must be at least 1"):
        predict(images, classified.out, tmp_path, num_images=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        predict(tmp_path / "nowhere", classified.out, tmp_path)
    config = Config.fromfile(classified.config)
    config.model.type = "FCMAE"
    with pytest.raises(ValueError, match=r"is of pre-training: reconstruct\(\)"):
        predict(images, classified.out, tmp_path, config=config)
    assert not list(tmp_path.iterdir())


def test_large_pictures_are_shrunk_and_names_are_told_apart(
    classified: RunResult, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (2560, 1280)).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "in" / "a.bmp")
    found = predict(tmp_path / "in", classified.out, tmp_path / "out", device="cpu")
    sizes = {picture.name: Image.open(picture).size for picture in found.pictures}
    assert sizes == {"a.bmp.png": (320, 320), "a.png.png": (1280, 640)}
