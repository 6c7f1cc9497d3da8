"""The tools that look into encoders: from pictures, config and checkpoint to tables and plots."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from mmpretrain.models import ConvNeXt, VisionTransformer
from PIL import Image
from torch import Tensor, nn

from mmconvnextv2.models import ConvNeXtV2

pytestmark = pytest.mark.integration

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "analysis_tools"
ARCH = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 16])
VIT = dict(
    arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=24),
    img_size=64,
    patch_size=16,
)
MEAN, STD = (100.0, 110.0, 120.0), (50.0, 55.0, 60.0)
COLOURS = dict(blue=(20, 20, 220), green=(20, 220, 20), red=(220, 20, 20))


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_tool", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two noisy pictures, one broken file, and three encoders."""
    root = tmp_path_factory.mktemp("encoders")
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / "images" / name).mkdir(parents=True)
        for i in range(2):
            pixels = random.normal(colour, 40, (64, 64, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{i}.png")
    (root / "images" / "red" / "9.jpg").write_bytes(b"no picture")
    (root / "one_class" / "a").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(root / "one_class" / "a" / "0.png")

    torch.manual_seed(0)
    v2 = ConvNeXtV2(ARCH, gap_before_final_norm=False, output_norms=False)
    v1 = ConvNeXt(ARCH)
    vit = VisionTransformer(**VIT)
    for net in (v2, v1, vit):
        for parameter in net.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
    normal = f"mean={list(MEAN)}, std={list(STD)}, to_rgb=True"
    ours = dict(type="ConvNeXtV2", arch=ARCH, gap_before_final_norm=False, output_norms=False)
    for name, net, model in (
        ("v2", v2, f"dict(type='FCMAE', data_preprocessor=dict({normal}), backbone={ours})"),
        ("v1", v1, f"dict(backbone=dict(type='ConvNeXt', arch={ARCH}))"),
        ("vit", vit, f"dict(backbone={dict(type='mmpretrain.VisionTransformer', **VIT)})"),
    ):
        text = f"model = {model}\ndata_preprocessor = dict({normal})\n"
        (root / f"{name}.py").write_text(text)
        tensors = {f"backbone.{key}": value for key, value in net.state_dict().items()}
        torch.save(dict(state_dict=tensors), root / f"{name}.pth")
    return root


def arguments(files: Path, out_dir: Path, *names: str, images: str = "images") -> list[str]:
    models = [f"--model {name.upper()} {files / name}.py {files / name}.pth" for name in names]
    options = f"--image-size 64 --batch-size 4 --out-dir {out_dir}"
    return " ".join([str(files / images), *models, options]).split()


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def pictures(files: Path) -> Tensor:
    """All six, normalised by hand."""
    paths = sorted((files / "images").glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths]).astype(np.float32)
    x = (pixels - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()


def features_of_v1(files: Path, which: str) -> list[Tensor]:
    """By hooks of our own: input of each last layer ``(N, H, W, C)``, or output of each block."""
    net = ConvNeXt(ARCH)
    net.eval()  # returns nothing
    tensors = torch.load(files / "v1.pth", weights_only=True)["state_dict"]
    net.load_state_dict({key.removeprefix("backbone."): v for key, v in tensors.items()})
    seen: list[Tensor] = []
    for (block,) in net.stages:
        if which == "hidden":
            block.pointwise_conv2.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        else:
            block.register_forward_hook(lambda _, inputs, out: seen.append(out))
    with torch.no_grad():
        net(pictures(files))
    return seen


def test_feature_diversity(files: Path, tmp_path: Path, capsys) -> None:
    tool = load_tool("feature_diversity")
    assert tool.main(arguments(files, tmp_path, "v2", "v1", "vit")) == 0
    printed = capsys.readouterr()
    assert "V1: mean" in printed.out and "9.jpg" in printed.err
    rows = read_rows(tmp_path / "feature_diversity.csv")
    assert [(row["model"], row["stage"], row["block"]) for row in rows[-3:]] == [
        ("V1", "4", "1"),
        ("VIT", "1", "1"),
        ("VIT", "1", "2"),
    ]
    of_v1 = [float(row["distance"]) for row in rows if row["model"] == "V1"]
    expected = []
    for hidden in features_of_v1(files, "hidden"):
        maps = hidden.flatten(1, 2).transpose(1, 2).double()
        directions = maps / maps.norm(dim=2, keepdim=True)
        expected.append(((1 - directions @ directions.transpose(1, 2)) / 2).mean().item())
    assert of_v1 == pytest.approx(expected, abs=1e-4)
    content = json.loads((tmp_path / "feature_diversity.json").read_text())
    assert [model["images"] for model in content["models"]] == [6, 6, 6]
    assert content["models"][1]["stages"] == pytest.approx(expected, abs=1e-4)
    assert Image.open(tmp_path / "feature_diversity.png").width > 500


def test_class_selectivity(files: Path, tmp_path: Path, capsys) -> None:
    tool = load_tool("class_selectivity")
    assert tool.main(arguments(files, tmp_path, "v1", "vit")) == 0
    assert "V1: 6 images of 3 classes" in capsys.readouterr().out
    rows = [r for r in read_rows(tmp_path / "class_selectivity.csv") if r["model"] == "V1"]
    assert len(rows) == 8 + 8 + 8 + 16
    expected = []
    for features in features_of_v1(files, "output"):
        activity = features.clamp(min=0).double().mean(dim=(2, 3)).view(3, 2, -1).mean(dim=1)
        best, rest = activity.max(dim=0).values, activity.sort(dim=0).values[:-1].mean(dim=0)
        expected += torch.where(best > 0, (best - rest) / (best + rest), 0.0).tolist()
    assert [float(row["selectivity"]) for row in rows] == pytest.approx(expected, abs=1e-4)
    content = json.loads((tmp_path / "class_selectivity.json").read_text())
    first = content["models"][0]["blocks"][0]
    assert first["channels"] == 8 and len(first["selectivities"]) == 8 - first["inactive"]
    assert Image.open(tmp_path / "class_selectivity.png").width > 300
    assert tool.main(arguments(files, tmp_path, "v1", images="one_class")) == 2
    assert "at least 2 classes" in capsys.readouterr().err


def test_activation_maps(files: Path, tmp_path: Path, capsys) -> None:
    tool = load_tool("activation_maps")
    command = arguments(files, tmp_path, "v2", "v1")
    assert tool.main([*command, "--num-pictures", "2", "--block", "2", "1"]) == 0
    assert "V2: of 160 channels in 4 blocks" in capsys.readouterr().out
    content = json.loads((tmp_path / "activation_maps.json").read_text())
    assert [model["drawn"] for model in content["models"]] == [[2, 1], [2, 1]]
    rows = [r for r in read_rows(tmp_path / "activation_maps.csv") if r["model"] == "V1"]
    assert [int(row["channels"]) for row in rows] == [32, 32, 32, 64]
    for row, hidden in zip(rows, features_of_v1(files, "hidden"), strict=True):
        maps = hidden.flatten(1, 2).double().numpy()  # (N, P, C)
        norms = np.sqrt((maps**2).sum(axis=1)).mean(axis=0)
        dead = maps.max(axis=(0, 1)) <= 1e-3 * np.median(norms)
        variation = (maps.std(axis=1) / np.abs(maps.mean(axis=1))).mean(axis=0)
        flat = (variation < 0.05) & (norms > np.median(norms)) & ~dead
        assert (int(row["dead"]), int(row["saturated"])) == (dead.sum(), flat.sum())
    assert Image.open(tmp_path / "activation_maps.png").width > 500
    assert tool.main([*command, "--block", "2", "7"]) == 2
    assert "no block 7 in stage 2: depths [1, 1, 1, 1]" in capsys.readouterr().err


def test_what_cannot_be_analysed_is_refused(files: Path, tmp_path: Path, capsys) -> None:
    tool = load_tool("feature_diversity")
    (files / "swin.py").write_text(
        "model = dict(backbone=dict(type='SwinTransformer', arch=dict(embed_dims=8, "
        "depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])))\n"
    )
    (files / "empty.py").write_text("model = dict(type='FCMAE')\n")
    for config, checkpoint, message in (
        ("v2.py", "v1.pth", "checkpoint does not fit"),
        ("swin.py", "v1.pth", "blocks of a SwinTransformer are not known"),
        ("empty.py", "v1.pth", "no model.backbone"),
        ("v2.py", "none.pth", "does not exist"),
        ("none.py", "v1.pth", "none.py"),
    ):
        command = [str(files / "images"), "--model", "A", str(files / config)]
        assert tool.main([*command, str(files / checkpoint), "--out-dir", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    assert tool.main(arguments(files, tmp_path, "v1", "v1")) == 2
    assert "name of its own" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_images_of_any_depth(files: Path, tmp_path: Path) -> None:
    """The encoder reads 16-bit files of two channels as its config's pipeline and bounds say."""
    from mmconvnextv2.analysis.encoders import load_encoder

    net = ConvNeXtV2(ARCH, in_channels=2, output_norms=False)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    preprocessor = dict(mean=[1000.0, 2000.0], std=[10.0, 20.0], clip=([0, 0], [3000, 3000]))
    dataset = dict(dataset=dict(pipeline=[dict(type="LoadRaster", channels=2)]))
    (tmp_path / "two.py").write_text(
        f"model = dict(data_preprocessor={preprocessor}, "
        f"backbone=dict(type='ConvNeXtV2', arch={ARCH}, in_channels=2, output_norms=False))\n"
        f"train_dataloader = dict(dataset={dataset})\n"
    )
    pixels = np.random.default_rng(0).integers(0, 60000, (64, 64, 2)).astype(np.uint16)
    np.save(tmp_path / "image.npy", pixels)
    encoder = load_encoder("two", tmp_path / "two.py", tmp_path / "net.pth")
    x = encoder.read(str(tmp_path / "image.npy"), 64)
    expected = (pixels.clip(0, 3000).astype(np.float64) - [1000, 2000]) / [10, 20]
    np.testing.assert_allclose(x.permute(1, 2, 0).numpy(), expected, atol=1e-3)
