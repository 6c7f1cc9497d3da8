"""Parameters and FLOPs against counts by hand, closed formulas and mmengine's own counter."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

import mmconvnextv2.models  # noqa: F401
from mmconvnextv2.analysis.complexity import (
    build_model,
    count,
    default_shape,
    measure_config,
    measure_module,
    shapes_only,
)
from mmconvnextv2.nn import ConvNeXtV2

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
# Depths and channels as the paper lists them, and parameters with a head of 1000 classes.
SIZES = {
    "atto": ((2, 2, 6, 2), 40, 3_708_400),
    "femto": ((2, 2, 6, 2), 48, 5_233_240),
    "pico": ((2, 2, 6, 2), 64, 9_066_280),
    "nano": ((2, 2, 8, 2), 80, 15_623_800),
    "tiny": ((3, 3, 9, 3), 96, 28_635_496),
    "base": ((3, 3, 27, 3), 128, 88_717_800),
    "large": ((3, 3, 27, 3), 192, 197_956_840),
    "huge": ((3, 3, 27, 3), 352, 660_289_640),
}


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "tools/analysis_tools" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def classifier(arch: str) -> Config:
    return Config(
        dict(
            default_scope="mmpretrain",
            model=dict(
                type="ImageClassifier",
                backbone=dict(type="ConvNeXtV2", arch=arch),
                head=dict(type="LinearClsHead", num_classes=1000, in_channels=8 * SIZES[arch][1]),
            ),
        )
    )


def encoder_by_hand(arch: str, pixels: int, visible: float = 1.0) -> int:
    """Multiply-accumulates of the encoder on an image of so many pixels, a multiple of 1024.

    A block has a depthwise convolution of 49 taps a channel and two matrices of C x 4C; a visible
    share below 1 confines all but the depthwise convolution to visible positions.
    """
    depths, width, _ = SIZES[arch]
    total, before = 0.0, None
    for stage, depth in enumerate(depths):
        channels = width * 2**stage
        positions = pixels / (4 * 2**stage) ** 2
        patch = 4 * 4 * 3 if before is None else 2 * 2 * before
        total += visible * positions * patch * channels
        total += depth * positions * 49 * channels
        total += depth * visible * positions * 8 * channels**2
        before = channels
    assert total == pytest.approx(round(total), abs=1e-3)
    return round(total)


def test_convolutions_and_linear_layers_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 4 x 4 positions, 27 x 8
        nn.Conv2d(8, 8, 5, padding=2, groups=8),  # 4 x 4 positions, 25 x 8
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    complexity = measure_module("net", net.eval(), (8, 8))
    assert complexity.flops == 16 * 27 * 8 + 16 * 25 * 8 + 128 * 10
    assert complexity.attention == 0
    assert complexity.parameters == (27 * 8 + 8) + (25 * 8 + 8) + 16 + (128 * 10 + 10)


def test_fused_attention_is_counted() -> None:
    with shapes_only():
        queries, keys, values = (torch.empty(1, 2, n, 4) for n in (5, 7, 7))
        cost, output = count(functional.scaled_dot_product_attention, queries, keys, values)
    assert output.shape == (1, 2, 5, 4)
    assert cost.flops == cost.attention == 2 * (5 * 7 * 4) * 2


@pytest.mark.parametrize("arch", SIZES)
def test_classifier(arch: str) -> None:
    (complexity,) = measure_config(classifier(arch), (224, 224))
    backbone, head = complexity.parts
    assert complexity.parameters == SIZES[arch][2]
    assert backbone.cost.flops == encoder_by_hand(arch, 224 * 224)
    assert head.cost.flops == 8 * SIZES[arch][1] * 1000


def test_classifier_at_another_shape() -> None:
    (complexity,) = measure_config(classifier("huge"), (384, 512))
    assert complexity.parts[0].cost.flops == encoder_by_hand("huge", 384 * 512)


def test_agrees_with_mmengine_on_what_both_count() -> None:
    net = ConvNeXtV2("atto").eval()
    x_NCHW = torch.zeros(1, 3, 64, 96)
    analyzer = FlopAnalyzer(net, x_NCHW).unsupported_ops_warnings(False)
    by_operator = analyzer.by_operator()
    expected = by_operator["conv"] + by_operator["linear"]
    assert measure_module("net", net, (64, 96)).flops == expected


@pytest.mark.parametrize("arch", ["atto", "huge"])
def test_fcmae_on_whole_maps_and_on_visible_cells(arch: str) -> None:
    cfg = Config.fromfile(CONFIGS / f"fcmae/fcmae_convnextv2-{arch}_64xb64-coslr-800e_in1k.py")
    whole, visible = measure_config(cfg)
    assert "19 of 49" in whole.name and "19 of 49" in visible.name
    assert whole.parts[0].cost.flops == encoder_by_hand(arch, 224 * 224)
    assert visible.parts[0].cost.flops == encoder_by_hand(arch, 224 * 224, visible=19 / 49)
    decoder = 49 * (8 * SIZES[arch][1] * 512 + 49 * 512 + 8 * 512**2 + 512 * 3072)
    assert whole.parts[1].cost.flops == visible.parts[1].cost.flops == decoder
    assert whole.flops == whole.parts[0].cost.flops + decoder


def test_a_dense_encoder_has_no_row_of_visible_cells() -> None:
    cfg = Config.fromfile(CONFIGS / "fcmae/fcmae_convnextv2-atto_64xb64-coslr-800e_in1k.py")
    cfg.model.sparse_encoder = False
    (whole,) = measure_config(cfg)
    assert "whole maps" in whole.name
    assert whole.parts[0].cost.flops == encoder_by_hand("atto", 224 * 224)


def test_the_mask_is_the_configs() -> None:
    name = "fcmae/fcmae_convnextv2-atto_64xb64-coslr-800e_in1k.py"
    cfg = Config.fromfile(CONFIGS / name)
    cfg.model.data_preprocessor.mask_ratio = 0.75
    _, visible = measure_config(cfg, (256, 256))
    assert "16 of 64" in visible.name
    assert visible.parts[0].cost.flops == encoder_by_hand("atto", 256 * 256, visible=16 / 64)


def test_detector_heads_by_hand() -> None:
    cfg = Config.fromfile(next((CONFIGS / "mask_rcnn").glob("*atto*lsj-3x_coco.py")))
    (complexity,) = measure_config(cfg)
    assert complexity.shape == (800, 1280)
    cost = {part.name: part.cost.flops for part in complexity.parts}
    strides = (4, 8, 16, 32)
    positions = [(800 // s) * (1280 // s) for s in strides]
    channels = [40, 80, 160, 320]
    # The fifth level is the fourth, subsampled: 25 x 40 to 13 x 20.
    rpn = (sum(positions) + 13 * 20) * (9 * 256 * 256 + 256 * 3 * (1 + 4))
    assert cost["backbone"] == encoder_by_hand("atto", 800 * 1280)
    assert cost["neck"] == sum(
        p * (c * 256 + 9 * 256 * 256) for p, c in zip(positions, channels, strict=True)
    )
    assert cost["RPN head"] == rpn
    assert cost["box head"] == 1000 * (49 * 256 * 1024 + 1024**2 + 1024 * (81 + 4 * 80))
    assert cost["mask head"] == 100 * 196 * (4 * 9 * 256**2 + 4 * 256**2 + 4 * 256 * 80)


def test_segmentor_head_by_hand() -> None:
    cfg = Config.fromfile(next((CONFIGS / "upernet").glob("*atto*512x512.py")))
    (complexity,) = measure_config(cfg)
    assert complexity.shape == (512, 2048)
    backbone, head, auxiliary = complexity.parts
    channels, width = [40, 80, 160, 320], 512
    positions = [(512 // s) * (2048 // s) for s in (4, 8, 16, 32)]
    pyramid = (1 + 4 + 9 + 36) * channels[3] * width
    pyramid += positions[3] * 9 * (channels[3] + 4 * width) * width
    levels = sum(positions[i] * (channels[i] * width + 9 * width**2) for i in range(3))
    fusion = positions[0] * (9 * 4 * width * width + width * 150)
    assert backbone.cost.flops == encoder_by_hand("atto", 512 * 2048)
    assert head.cost.flops == pyramid + levels + fusion
    assert auxiliary.parameters > 0 and auxiliary.cost.flops == 0


def test_nothing_is_allocated() -> None:
    with shapes_only():
        model = build_model(classifier("huge"))
        assert all(isinstance(tensor, FakeTensor) for tensor in model.parameters())


def test_default_shape_of_a_classifier_is_its_crop() -> None:
    name = "fcmae/fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py"
    assert default_shape(Config.fromfile(CONFIGS / name)) == (160, 160)


def test_bad_input_is_refused(capsys: pytest.CaptureFixture) -> None:
    get_flops = tool("get_flops")
    config = str(CONFIGS / "fcmae/fcmae_convnextv2-atto_64xb64-coslr-800e_in1k.py")
    assert get_flops.main([config, "--shape", "200", "224"]) == 1
    assert "multiples of 32" in capsys.readouterr().err
    assert get_flops.main([config, "--shape", "16", "32"]) == 1
    assert "at least 32" in capsys.readouterr().err
    assert get_flops.main(["nowhere.py"]) == 1
    assert "nowhere.py" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no input size"):
        measure_config(classifier("atto"))
    single_stage = Config(dict(model=dict(type="RetinaNet", backbone={}, bbox_head={})))
    with pytest.raises(ValueError, match="cannot count a RetinaNet"):
        measure_config(single_stage, (64, 64))


def test_tool_prints_parts_and_total(capsys: pytest.CaptureFixture) -> None:
    config = str(CONFIGS / "fcmae/fcmae_convnextv2-atto_64xb64-coslr-800e_in1k.py")
    assert tool("get_flops").main([config]) == 0
    lines = capsys.readouterr().out.splitlines()
    totals = [line.split() for line in lines if line.startswith("  total")]
    decoder = 49 * (320 * 512 + 49 * 512 + 8 * 512**2 + 512 * 3072)
    for total, visible in zip(totals, (1, 19 / 49), strict=True):
        expected = (encoder_by_hand("atto", 224 * 224, visible) + decoder) / 1e9
        assert float(total[1]) == 7.258
        assert float(total[3]) == pytest.approx(expected, abs=5e-4)
    assert "multiply-accumulate" in lines[-1]


def page_tables() -> dict[str, list[list[str]]]:
    """Rows of each table of the page, by the title above it."""
    tables: dict[str, list[list[str]]] = {}
    for section in (ROOT / "docs" / "complexity.md").read_text().split("\n## ")[1:]:
        title, *lines = section.splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
        tables[title] = rows[2:]  # after the header and its rule
    return tables


def test_page_has_every_row_and_explains_every_large_gap() -> None:
    data = yaml.safe_load((ROOT / "docs/data/published_results.yml").read_text())
    tables = page_tables()
    for group in data["complexity"]:
        rows = tables[group["title"]]
        assert len(rows) == len(group["rows"])
        for row, cells in zip(group["rows"], rows, strict=True):
            model, shape, parameters, _, flops, published, gap, origin = cells
            assert (model, shape) == (row["model"], "{}x{}".format(*row["shape"]))
            assert row.get("config", "timm `") in origin
            if published:
                assert float(published) == row["published"]
                deviation = float(flops) / float(published) - 1
                assert float(gap.split()[0]) == pytest.approx(100 * deviation, abs=0.1)
                assert abs(deviation) < 0.01 or "(" in gap
            if "parameters" in row:
                assert float(parameters) == pytest.approx(row["parameters"], rel=0.01)


def test_page_agrees_with_the_closed_formulas() -> None:
    tables = page_tables()
    classifiers = {
        (cells[0], cells[1]): float(cells[4])
        for title, rows in tables.items()
        if title.startswith("Classifiers")
        for cells in rows
    }
    assert len(classifiers) == 14
    for (model, shape), flops in classifiers.items():
        arch = next(arch for arch in SIZES if arch[0].upper() == model[-1])
        height, width = map(int, shape.split("x"))
        expected = encoder_by_hand(arch, height * width) + 8000 * SIZES[arch][1]
        assert flops == pytest.approx(expected / 1e9, rel=6e-4)
    pretraining = next(rows for title, rows in tables.items() if title.startswith("FCMAE"))
    assert [cells[0] for cells in pretraining] == list(SIZES)
    for cells in pretraining:
        whole = encoder_by_hand(cells[0], 224 * 224)
        visible = encoder_by_hand(cells[0], 224 * 224, visible=19 / 49)
        assert [float(cells[2]), float(cells[3])] == pytest.approx(
            [whole / 1e9, visible / 1e9], rel=6e-4
        )


def test_an_unexplained_gap_is_refused() -> None:
    page = tool("make_complexity_table")
    row = dict(model="A", config="a.py", shape=[64, 64], published=1.0)
    group = dict(title="T", source="S", rows=[row])
    counted = measure_module("A", nn.Conv2d(3, 8, 1), (64, 64))
    with pytest.raises(ValueError, match="T, A: .*explain it"):
        page.render_group(group, [counted])
    row["gap"] = "Because. Without attention {without_attention}."
    text = page.render_group(group, [counted])
    assert "(1) Because. Without attention 9.830e-05 G (-100.0 %)." in text
