"""`init_cfg=dict(type='Pretrained', ...)`: what is taken, what is said, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmpretrain.models import ConvNeXt
from mmpretrain.registry import MODELS

from mmconvnextv2.checkpoint import StateDictMismatch
from mmconvnextv2.models import ConvNeXtV2

pytestmark = pytest.mark.unit

DENSE = dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(
        "mmconvnextv2.models.convnextv2.print_log", lambda message, *_: lines.append(message)
    )
    return lines


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.fixture
def classifier(tiny_arch: dict, tmp_path: Path) -> tuple[Path, ConvNeXt]:
    """A file with the keys of mmpretrain's published fine-tuned ConvNeXt V2."""
    backbone = randomized(ConvNeXt(tiny_arch, use_grn=True, layer_scale_init_value=0.0))
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    state |= {"head.fc.weight": torch.randn(10, 32), "head.fc.bias": torch.randn(10)}
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "classifier.pth")
    return tmp_path / "classifier.pth", backbone


def load(path: Path, arch: object, **settings: object) -> ConvNeXtV2:
    options = settings.pop("options", {})
    init_cfg = dict(type="Pretrained", checkpoint=str(path), **options)
    net = ConvNeXtV2(arch, init_cfg=init_cfg, **settings)
    net.init_weights()
    return net


def test_fcmae_loads_into_dense_prediction(tiny_arch: dict, tmp_path: Path, said: list) -> None:
    config = dict(
        type="FCMAE",
        backbone=dict(
            type="ConvNeXtV2", arch=tiny_arch, output_norms=False, gap_before_final_norm=False
        ),
        neck=dict(type="FCMAEDecoder", in_channels=32, num_channels=16),
    )
    fcmae = randomized(MODELS.build(config))
    torch.save({"state_dict": fcmae.state_dict()}, tmp_path / "fcmae.pth")
    net = load(tmp_path / "fcmae.pth", tiny_arch, **DENSE)
    for key, value in fcmae.backbone.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key
    total = len(net.state_dict())
    assert f"loaded {total - 8} of {total} backbone tensors" in said[0]
    assert "start fresh: norm0.weight, norm0.bias, norm1.weight" in said[0]


def test_classifier_takes_the_final_norm(tiny_arch: dict, classifier: tuple, said: list) -> None:
    path, backbone = classifier
    net = load(path, tiny_arch)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in backbone.state_dict().items())
    total = len(net.state_dict())
    assert said == [f"{path}: loaded {total} of {total} backbone tensors"]


@pytest.mark.parametrize("take", [False, True])
def test_dense_prediction_takes_norm3_on_request(
    take: bool, tiny_arch: dict, classifier: tuple, said: list
) -> None:
    path, backbone = classifier
    options = dict(output_norms=True) if take else {}
    net = load(path, tiny_arch, **DENSE, options=options)
    assert torch.equal(net.norm3.weight, backbone.norm3.weight) is take
    assert torch.equal(net.norm3.weight, torch.ones(32)) is not take
    assert ("norm3.weight" in said[0]) is not take
    assert "norm2.weight" in said[0]


def test_another_architecture_fails_with_the_lists(tiny_arch: dict, classifier: tuple) -> None:
    path, _ = classifier
    deeper = dict(depths=[1, 2, 2, 1], channels=[8, 16, 24, 40])
    with pytest.raises(StateDictMismatch) as caught:
        load(path, deeper)
    message = str(caught.value)
    assert "missing: stages.1.1.depthwise_conv.weight" in message
    assert "norm3.weight: (32,) in the file, (40,) in the model" in message


def test_a_truncated_file_fails(tiny_arch: dict, classifier: tuple) -> None:
    path, _ = classifier
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"classifier.pth cannot be read"):
        load(path, tiny_arch)


@pytest.mark.parametrize(
    "init_cfg",
    [
        dict(type="TruncNormal", std=0.1),
        dict(type="Pretrained"),
        dict(type="Pretrained", checkpoint="a.pth", strict=False),
        [dict(type="Pretrained", checkpoint="a.pth")],
    ],
)
def test_other_initialisations_are_refused(init_cfg: object, tiny_arch: dict) -> None:
    with pytest.raises(ValueError, match="init_cfg must be None or"):
        ConvNeXtV2(tiny_arch, init_cfg=init_cfg)
