"""Layer decay against the official rules, the paper's stem rates, and mmdet's and mmseg's own."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmconvnextv2.engine import layer_decay
from mmconvnextv2.engine.layer_decay import (
    LayerDecayOptimWrapperConstructor,
    group_table,
    layer_ids,
)
from mmconvnextv2.models import ConvNeXtV2
from mmconvnextv2.nn import ARCHITECTURES

pytestmark = pytest.mark.unit

LR, DECAY = 2e-3, 0.05
# Scheme, decay rate and stem rate over head rate of the fine-tuning recipes (paper, tables 9-11).
RECIPES = {
    "atto": ("single", 0.9, 0.2824295),
    "femto": ("single", 0.9, 0.2824295),
    "pico": ("single", 0.9, 0.2824295),
    "nano": ("single", 0.9, 0.2287679),
    "tiny": ("single", 0.9, 0.1500946),
    "base": ("group", 0.6, 0.001306069),
    "large": ("group", 0.6, 0.001306069),
    "huge": ("single", 0.75, 3.178378e-05),
}


class Classifier(nn.Module):
    """The least a model needs: a backbone under the name that every framework uses, a head."""

    def __init__(self, depths: tuple[int, ...], **settings) -> None:
        super().__init__()
        arch = dict(depths=depths, channels=(4, 8, 12, 16))
        self.backbone = ConvNeXtV2(arch, **settings)
        self.head = nn.Linear(16, 3)


def build(model: nn.Module, optimizer: str = "AdamW", lr: float = LR, **paramwise):
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type="LayerDecayOptimWrapperConstructor",
            optim_wrapper_cfg=dict(optimizer=dict(type=optimizer, lr=lr, weight_decay=DECAY)),
            paramwise_cfg=paramwise,
        )
    )
    return constructor(model)


def settings_by_name(wrapper, model: nn.Module) -> dict[str, tuple[float, float]]:
    """(rate, weight decay) of every parameter in the optimizer, each exactly once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found
            found[name] = (group["lr"], group["weight_decay"])
    return found


def official_exponent(name: str, depths: tuple[int, ...], scheme: str) -> int:
    """Steps of decay of a parameter in the paper's fine-tuning code, counted from its rules.

    An independent form of them: the number of steps between a parameter and the head.
    """
    part, *numbers = name.removeprefix("backbone.").split(".")
    stage = int(numbers[0]) if part in ("downsample_layers", "stages") else None
    if stage is None:
        return 0
    if scheme == "single":
        deeper = sum(depths[stage + 1 :])
        block = int(numbers[1]) if part == "stages" else 0
        return deeper + depths[stage] - block
    if part == "downsample_layers":
        return {0: 13, 1: 11, 2: 10, 3: 1}[stage]
    return {0: 12, 1: 11, 2: 10 - int(numbers[1]) // 3, 3: 1}[stage]


@pytest.mark.parametrize("size", RECIPES)
def test_the_papers_recipes(size: str) -> None:
    scheme, rate, stem = RECIPES[size]
    depths = ARCHITECTURES[size]["depths"]
    model = Classifier(depths)
    wrapper = build(model, scheme=scheme, decay_rate=rate)
    found = settings_by_name(wrapper, model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        lr = LR * rate ** official_exponent(name, depths, scheme)
        assert found[name] == (
            pytest.approx(lr),
            DECAY if parameter.ndim > 1 else 0.0,
        ), name
    assert found["backbone.downsample_layers.0.0.weight"][0] / LR == pytest.approx(stem, rel=1e-5)
    assert found["head.weight"][0] == found["backbone.norm3.weight"][0] == LR
    assert found["backbone.stages.3.1.grn.gamma"][1] == 0.0


@pytest.mark.parametrize("size", RECIPES)
def test_table_of_every_size(size: str) -> None:
    """One group for each pair of layer id and decay, stem first, and all parameters in them."""
    scheme, rate, stem = RECIPES[size]
    with torch.device("meta"):
        model = nn.ModuleDict(dict(backbone=ConvNeXtV2(size), head=nn.Linear(8, 10)))
    constructor = LayerDecayOptimWrapperConstructor(
        dict(optimizer=dict(type="AdamW", lr=LR, weight_decay=DECAY)),
        dict(scheme=scheme, decay_rate=rate),
    )
    groups = constructor.parameter_groups(model)
    table = group_table(groups).splitlines()[1:]
    ids = {group["lr_scale"] for group in groups}
    # Both kinds everywhere: each id has norms or biases, and kernels.
    expected = {"single": sum(ARCHITECTURES[size]["depths"]) + 1, "group": 14}[scheme]
    assert len(ids) == expected
    assert len(groups) == len(table) == 2 * expected
    assert sum(int(line.split()[-1].replace(",", "")) for line in table) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    assert sum(int(line.split()[-2]) for line in table) == len(list(model.parameters()))
    first, last = table[0].split(), table[-1].split()
    assert float(first[1]) == pytest.approx(stem, rel=1e-3)
    assert float(first[2]) == pytest.approx(LR * stem, rel=1e-3)
    assert (float(first[3]), float(last[1]), float(last[3])) == (0.0, 1.0, DECAY)


def test_printed_table(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(layer_decay, "print_log", lambda text, logger: printed.append(text))
    model = nn.ModuleDict(dict(backbone=ConvNeXtV2("atto"), head=nn.Linear(320, 10)))
    groups = build(model, scheme="single", decay_rate=0.9).optimizer.param_groups
    title, header, first, second, *_, last = printed[0].splitlines()
    assert title == "layer decay 'single', 0.9 a layer"
    assert header.split() == ["layer", "lr", "scale", "lr", "decay", "tensors", "parameters"]
    # The stem has 3 vectors of 40, the first block 4 of 40 (biases, norm) and 3 of 160 (bias, GRN).
    assert 7 * 40 + 3 * 160 == 760
    assert first.split() == ["1", "0.2824", "0.0005649", "0", "10", "760"]
    # Kernels: 4x4 of 3 channels, 7x7, and two matrices.
    assert 40 * 48 + 49 * 40 + 2 * 40 * 160 == 16_680
    assert second.split() == ["1", "0.2824", "0.0005649", "0.05", "4", "16,680"]
    assert last.split() == ["13", "1", "0.002", "0.05", "1", "3,200"]
    assert groups[0]["group_name"] == "layer_1_no_decay"
    assert groups[-1]["group_name"] == "layer_13_decay"


@pytest.mark.parametrize("framework", ["mmdet", "mmseg"])
@pytest.mark.parametrize("scheme", ["layer_wise", "stage_wise"])
@pytest.mark.parametrize(("size", "num_layers"), [("atto", 6), ("tiny", 6), ("base", 12)])
@pytest.mark.parametrize("settings", [{}, dict(frozen_stages=2)], ids=["all", "frozen"])
def test_as_mmdet_and_mmseg(
    framework: str, scheme: str, size: str, num_layers: int, settings: dict
) -> None:
    depths = ARCHITECTURES[size]["depths"]
    model = Classifier(depths, out_indices=(0, 1, 2, 3), gap_before_final_norm=False, **settings)
    ours = settings_by_name(
        build(model, scheme=scheme, decay_rate=0.8, num_layers=num_layers), model
    )
    if framework == "mmdet":
        from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor as Theirs
    else:
        from mmseg.engine.optimizers import LearningRateDecayOptimizerConstructor as Theirs
    constructor = Theirs(
        dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=LR, weight_decay=DECAY)),
        dict(decay_rate=0.8, decay_type=scheme, num_layers=num_layers),
    )
    theirs = settings_by_name(constructor(model), model)
    assert set(ours) == set(theirs)
    for name, (lr, decay) in theirs.items():
        assert ours[name] == (pytest.approx(lr), decay), name
    if settings:
        assert not any("stages.1." in name or "downsample_layers.0" in name for name in ours)


def test_layer_scale_is_not_decayed() -> None:
    model = Classifier((1, 1, 1, 1), use_grn=False, layer_scale_init_value=1e-6)
    found = settings_by_name(build(model, scheme="single", decay_rate=0.9), model)
    assert found["backbone.stages.0.0.gamma"][1] == 0.0


def test_one_step_moves_each_layer_by_its_rate() -> None:
    """Plain SGD on gradients of 1 moves a parameter of value 0 by minus its rate."""
    depths = (2, 2, 6, 2)
    model = Classifier(depths)
    wrapper = build(model, "SGD", lr=0.5, scheme="single", decay_rate=0.9)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
        parameter.grad = torch.ones_like(parameter)
    wrapper.step()
    for name, parameter in model.named_parameters():
        expected = -0.5 * 0.9 ** official_exponent(name, depths, "single")
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), msg=name)


def test_a_rate_of_one_leaves_two_groups() -> None:
    groups = build(Classifier((1, 1, 1, 1)), scheme="single", decay_rate=1.0).optimizer.param_groups
    assert [group["group_name"] for group in groups] == ["layer_1-5_no_decay", "layer_1-5_decay"]
    assert [group["lr"] for group in groups] == [LR, LR]


def test_the_backbone_may_be_anywhere() -> None:
    inner = Classifier((1, 1, 1, 1))
    outer = nn.ModuleDict(dict(student=inner))
    found = settings_by_name(build(outer, scheme="stage_wise", decay_rate=0.5), outer)
    assert found["student.backbone.stages.3.0.norm.weight"][0] == LR * 0.5**9
    assert found["student.head.bias"][0] == LR
    alone = settings_by_name(
        build(inner.backbone, scheme="stage_wise", decay_rate=0.5), inner.backbone
    )
    assert alone["stages.3.0.norm.weight"][0] == LR * 0.5**9
    # As wrapped for distributed training.
    wrapped = nn.DataParallel(inner)
    assert settings_by_name(build(wrapped, scheme="group", decay_rate=0.5), inner)


@pytest.mark.parametrize(
    ("paramwise", "message"),
    [
        (dict(scheme="linear", decay_rate=0.9), "one of single, group, .* got 'linear'"),
        (dict(scheme="single", decay_rate=0.0), r"\(0, 1\], got 0"),
        (dict(scheme="single", decay_rate=1.1), r"\(0, 1\], got 1.1"),
        (dict(scheme="single", decay_rate=0.9, num_layers=12), "takes no num_layers"),
        (dict(scheme="layer_wise", decay_rate=0.9, num_layers=2), "Raise num_layers"),
        (dict(scheme="single"), "needs paramwise_cfg"),
        (dict(decay_type="single", decay_rate=0.9, scheme="single"), "decay_type"),
    ],
)
def test_bad_settings(paramwise: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Classifier((1, 1, 1, 1)), **paramwise)


def test_too_many_blocks_for_the_ids() -> None:
    assert max(layer_ids((3, 3, 27, 3), "layer_wise").blocks[2]) == 11
    with pytest.raises(ValueError, match="ids up to 11 .* but has 6"):
        layer_ids((3, 3, 27, 3), "layer_wise", num_layers=6)


def test_models_without_one_backbone() -> None:
    with pytest.raises(ValueError, match=r"Linear holds 0 \(none\)"):
        build(nn.Linear(2, 2), scheme="single", decay_rate=0.9)
    two = nn.ModuleDict({name: ConvNeXtV2("atto") for name in "ab"})
    with pytest.raises(ValueError, match=r"holds 2 \(a, b\)"):
        build(two, scheme="single", decay_rate=0.9)


def test_optimizer_has_to_state_what_is_scaled() -> None:
    with pytest.raises(ValueError, match="add weight_decay"):
        LayerDecayOptimWrapperConstructor(
            dict(optimizer=dict(type="AdamW", lr=LR)), dict(scheme="single", decay_rate=0.9)
        )
