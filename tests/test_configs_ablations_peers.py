"""The peers' configs: mmpretrain's models and recipes, one step each, weights that go on."""

from __future__ import annotations

import copy
import functools
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, DefaultScope
from mmengine.registry import MODELS as ROOT_MODELS
from narrowing import ARCH, CHANNELS, write_classes, write_scenes
from torch import Tensor, nn

import mmconvnextv2.datasets
import mmconvnextv2.engine
import mmconvnextv2.models.simmim  # noqa: F401
from mmconvnextv2.nn import ARCHITECTURES

pytestmark = pytest.mark.integration

PEERS = Path(__file__).parents[1] / "configs" / "ablations" / "peers"
THEIRS = Path(mmpretrain.__file__).parent / ".mim" / "configs"

VIT: dict[str, Any] = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
SWIN: dict[str, Any] = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
# SparK halves the width from map to map.
DOUBLING: dict[str, Any] = dict(depths=(1, 1, 1, 1), channels=(8, 16, 32, 64))

# Fine-tuning configs, each with the pre-training that it starts from.
CHAINS = {
    "convnextv2-atto_moco-v3-pre_1xb16-coslr-18e_sample": (
        "moco-v3_convnextv2-atto_1xb32-coslr-12e_sample"
    ),
    "convnextv2-atto_simmim-pre_1xb16-coslr-18e_sample": (
        "simmim_convnextv2-atto_1xb32-coslr-12e_sample"
    ),
    "convnextv2-base_moco-v3-pre_32xb32-coslr-100e_in1k": (
        "moco-v3_convnextv2-base_64xb64-coslr-300e_in1k"
    ),
    "convnextv2-base_simmim-pre_32xb32-coslr-100e_in1k": (
        "simmim_convnextv2-base_32xb64-800e_in1k-192px"
    ),
    "convnextv2-base_spark-pre_32xb32-coslr-100e_in1k": (
        "spark_convnextv2-base_64xb64-coslr-800e_in1k"
    ),
    "swin-base-w6_simmim-pre_64xb32-coslr-100e_in1k-192px": (
        "simmim_swin-base-w6_32xb64-800e_in1k-192px"
    ),
    "vit-atto-p16_mae-pre_1xb16-coslr-18e_sample": "mae_vit-atto-p16_1xb32-coslr-12e_sample",
    "vit-atto-p16_upernet_1xb16-1000i_sample": "mae_vit-atto-p16_1xb32-coslr-12e_sample",
    "vit-base-p16_beit-pre_32xb32-coslr-100e_in1k": "beit_vit-base-p16_32xb64-coslr-800e_in1k",
    "vit-base-p16_mae-pre_32xb32-coslr-100e_in1k": "mae_vit-base-p16_64xb64-coslr-1600e_in1k",
}
PRETRAINING = sorted(set(CHAINS.values()))
SUPERVISED = ["swin-base-w7_32xb32-coslr-300e_in1k", "vit-base-p16_32xb32-coslr-300e_in1k"]

# The same recipe at mmpretrain.
PEER_OF = {
    "beit_vit-base-p16_32xb64-coslr-800e_in1k": "beit/beit_beit-base-p16_8xb256-amp-coslr-300e",
    "mae_vit-base-p16_64xb64-coslr-1600e_in1k": "mae/mae_vit-base-p16_8xb512-amp-coslr-1600e",
    "moco-v3_convnextv2-base_64xb64-coslr-300e_in1k": (
        "mocov3/mocov3_vit-small-p16_16xb256-amp-coslr-300e"
    ),
    "simmim_convnextv2-base_32xb64-800e_in1k-192px": (
        "simmim/simmim_swin-base-w6_16xb128-amp-coslr-800e"
    ),
    "simmim_swin-base-w6_32xb64-800e_in1k-192px": (
        "simmim/simmim_swin-base-w6_16xb128-amp-coslr-800e"
    ),
    "spark_convnextv2-base_64xb64-coslr-800e_in1k": (
        "spark/spark_sparse-convnextv2-tiny_16xb256-amp-coslr-800e"
    ),
    "swin-base-w7_32xb32-coslr-300e_in1k": "swin_transformer/swin-base_16xb64",
    "swin-base-w6_simmim-pre_64xb32-coslr-100e_in1k-192px": (
        "simmim/benchmarks/swin-base-w6_8xb256-coslr-100e"
    ),
    "vit-base-p16_32xb32-coslr-300e_in1k": "deit/deit-base_16xb64",
    "vit-base-p16_beit-pre_32xb32-coslr-100e_in1k": (
        "beit/benchmarks/beit-base-p16_8xb128-coslr-100e"
    ),
    "vit-base-p16_mae-pre_32xb32-coslr-100e_in1k": (
        "mae/benchmarks/vit-base-p16_8xb128-coslr-100e"
    ),
}


class StubTokenizer(nn.Module):
    """In the place of DALL-E's encoder: logits of 16 tokens from the mean of 8x8 pixels."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        mean_N1HW = nn.functional.avg_pool2d(x_NCHW, 8).mean(dim=1, keepdim=True)
        return -(mean_N1HW - torch.linspace(-1, 1, 16).view(1, 16, 1, 1)).abs()


read = functools.cache(Config.fromfile)


def load(name: str) -> Config:
    """A copy, to be narrowed."""
    return copy.deepcopy(read(PEERS / f"{name}.py"))


def theirs_of(name: str) -> Config:
    return read(min(THEIRS.glob(f"{PEER_OF[name]}_in1k*.py"), key=lambda path: len(path.name)))


def narrow(config: Config) -> Config:
    """A network of few channels; its input, masks and losses stay as shipped, as do small ones."""
    model = config.model
    if config.filename.endswith("_sample.py"):
        return config
    backbone = model.backbone
    width = CHANNELS[-1]
    if backbone.type == "ConvNeXtV2":
        backbone.arch = ARCH
    elif backbone.type == "SparseConvNeXt":
        backbone.arch, width = DOUBLING, 64
    elif "Swin" in backbone.type:
        backbone.arch, width = SWIN, 128
    else:
        backbone.arch, width = VIT, 16
    if "num_classes" in model.get("head", {}):
        model.head.in_channels = width
    match model.type:
        case "SimMIM" | "ConvNetSimMIM":
            model.neck.in_channels = width
        case "MoCoV3":
            model.neck.update(in_channels=width, hid_channels=16, out_channels=8)
            model.head.predictor.update(in_channels=8, hid_channels=16, out_channels=8)
        case "SparK":
            model.enc_dec_norm_dim = model.neck.feature_dim = width
        case "MAE":
            model.neck.update(
                embed_dim=width, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2
            )
        case "BEiT":
            model.head.update(embed_dims=width, num_embed=16)
            model.target_generator = StubTokenizer()
    return config


class Step(NamedTuple):
    """One step of a narrowed config."""

    model: nn.Module
    wrapper: OptimWrapper
    loss: Tensor
    inputs: list[Tensor]
    start: dict[str, Tensor]
    """The state_dict before the step."""


def take_step(config: Config, data_root: Path) -> Step:
    """Build model, data and optimizer of a narrowed config, and take one step."""
    loader = config.train_dataloader
    loader.dataset.dataset.data_root = str(data_root)
    MessageHub.get_current_instance().update_info("max_iters", 10)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = ROOT_MODELS.build(config.model)
        model.init_weights()
        start = {name: value.clone() for name, value in model.state_dict().items()}
        dataset = DATASETS.build(loader.dataset)
        collate = default_collate if "collate_fn" in loader else pseudo_collate
        data = model.data_preprocessor(collate([dataset[0], dataset[1]]), training=True)
        wrapper = build_optim_wrapper(model, config.optim_wrapper)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
        loss.backward()
        wrapper.step()
    inputs = data["inputs"] if isinstance(data["inputs"], list) else [data["inputs"]]
    return Step(model, wrapper, loss, inputs, start)


def assert_everything_learns(step: Step) -> None:
    assert step.loss.isfinite()
    named = {n: p for n, p in step.model.named_parameters() if p.requires_grad}
    assert {n for n, p in named.items() if p.grad is None} == set(), "parameters without a use"
    assert any(not torch.equal(p, step.start[n]) for n, p in named.items())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def pretrained(images: Path) -> Callable[[str], Step]:
    """One step of a pre-training config, taken once."""
    steps: dict[str, Step] = {}

    def take(name: str) -> Step:
        if name not in steps:
            torch.manual_seed(0)
            steps[name] = take_step(narrow(load(name)), images)
        return steps[name]

    return take


def test_every_config_is_in_a_table_of_this_module() -> None:
    assert {path.stem for path in PEERS.glob("*.py")} == {*CHAINS, *PRETRAINING, *SUPERVISED}


@pytest.mark.parametrize("page", [PEERS / "README.md", PEERS.parents[2] / "docs" / "peers.md"])
def test_the_pages_name_configs_that_exist(page: Path) -> None:
    named = re.findall(r"[\w./-]+\.py\b", page.read_text())
    assert named
    for name in named:
        assert any((root / name).is_file() for root in (PEERS, PEERS.parents[2])), name


def test_names_say_batch_epochs_and_start() -> None:
    for name in [*CHAINS, *PRETRAINING, *SUPERVISED]:
        config = load(name)
        gpus, batch = map(int, re.search(r"_(\d+)xb(\d+)-", name).groups())
        assert config.train_dataloader.batch_size == batch, name
        assert config.auto_scale_lr.base_batch_size == gpus * batch, name
        assert "ReconstructionHook" not in {hook.type for hook in config.custom_hooks}, name
        if (epochs := re.search(r"-(\d+)e_", name)) is not None:
            assert config.train_cfg.max_epochs == int(epochs[1]), name
        if name in CHAINS:
            before = load(CHAINS[name])
            last = f"work_dirs/{CHAINS[name]}/epoch_{before.train_cfg.max_epochs}.pth"
            assert config.model.backbone.init_cfg.checkpoint == last, name


@pytest.mark.parametrize("name", ["moco-v3_convnextv2-atto", "beit_vit", "vit-atto-p16_upernet"])
def test_dump_reload(name: str, tmp_path: Path) -> None:
    """Those that compute something: a run writes its config into its folder."""
    (path,) = PEERS.glob(f"{name}*.py")
    config = Config.fromfile(path)
    config.dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py").to_dict() == config.to_dict()


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_takes_a_step(name: str, pretrained: Callable[[str], Step]) -> None:
    step = pretrained(name)
    assert_everything_learns(step)
    side = 160 if name.endswith("_sample") else 192 if name.endswith("192px") else 224
    first, *second = step.inputs
    assert first.shape == (2, 3, side, side)
    expected = {"moco": [(2, 3, side, side)], "beit": [(2, 3, side // 2, side // 2)]}
    assert [view.shape for view in second] == expected.get(name[:4], [])


def interpolated(pos_embed_1LC: Tensor) -> Tensor:
    """Positions of 10x10 patches as those of 6x6; that of the class token comes first."""
    grid_1CHW = pos_embed_1LC[:, 1:].unflatten(1, (10, 10)).permute(0, 3, 1, 2)
    grid_1CHW = nn.functional.interpolate(grid_1CHW, (6, 6), mode="bicubic", align_corners=False)
    return torch.cat([pos_embed_1LC[:, :1], grid_1CHW.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize("name", CHAINS)
def test_fine_tuning_starts_from_the_peer_and_takes_a_step(
    name: str, pretrained: Callable[[str], Step], images: Path, tmp_path: Path
) -> None:
    state = pretrained(CHAINS[name]).model.state_dict()
    torch.save(dict(state_dict=state), tmp_path / "peer.pth")
    config = narrow(load(name))
    config.model.backbone.init_cfg.checkpoint = str(tmp_path / "peer.pth")
    if "upernet" in name:
        images = write_scenes(tmp_path / "scenes")
    if config.model.backbone.type == "ConvNeXtV2" and "spark" in name:
        config.model.backbone.arch, config.model.head.in_channels = DOUBLING, 64
    step = take_step(config, images)
    assert_everything_learns(step)

    theirs = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    ours = {
        k.removeprefix("backbone."): v for k, v in step.start.items() if k.startswith("backbone.")
    }
    # BEiT's blocks share a table of positions, which fine-tuning gives to each of them.
    shared = theirs.get("rel_pos_bias.relative_position_bias_table")
    for key, value in ours.items():
        if re.match(r"ln2\.|norm\d\.", key) and key not in theirs:
            continue  # of what follows the encoder
        if "relative_position_index" in key or "attn_mask" in key:
            continue  # follows from the size of the window
        wanted = theirs[key] if key in theirs else shared
        if key == "pos_embed" and name.startswith("vit-atto"):
            wanted = interpolated(wanted)  # pictures have 160 px in pre-training, 96 px here
        torch.testing.assert_close(value, wanted, rtol=0, atol=0, msg=key)
    if "upernet" in name:
        assert_rates_grow(step)


def assert_rates_grow(step: Step) -> None:
    """From the patch embedding through the blocks to the head, each 4/3 of the one before."""
    names = {id(p): n for n, p in step.model.named_parameters()}
    groups = [
        (names[id(p)], g["lr"]) for g in step.wrapper.optimizer.param_groups for p in g["params"]
    ]
    parts = ["backbone.patch_embed", *(f"backbone.layers.{i}." for i in range(8)), "decode_head"]
    rates = [{rate for name, rate in groups if name.startswith(part)} for part in parts]
    assert [len(rate) for rate in rates] == [1] * 10
    rates = [rate.pop() for rate in rates]
    assert rates[-1] == 2e-3
    assert [b / a for a, b in itertools.pairwise(rates)] == pytest.approx([4 / 3] * 9)


@pytest.mark.parametrize("name", SUPERVISED)
def test_supervised_training_takes_a_step(name: str, images: Path) -> None:
    assert_everything_learns(take_step(narrow(load(name)), images))


def without(config: dict[str, Any], *dotted: str) -> dict[str, Any]:
    """A copy without some keys, of which those with a dot lie deeper."""
    plain = Config(config).to_dict()
    for name in dotted:
        *path, last = name.split(".")
        node = plain
        for key in path:
            node = node.get(key) or {}
        node.pop(last, None)
    return plain


@pytest.mark.parametrize("name", PEER_OF)
def test_schedule_and_optimizer_are_mmpretrains(name: str) -> None:
    mine, theirs = load(name), theirs_of(name)
    a, b = mine.optim_wrapper, theirs.optim_wrapper
    assert a.optimizer.type == b.optimizer.type
    assert a.optimizer.weight_decay == b.optimizer.weight_decay
    assert tuple(a.optimizer.betas) == tuple(b.optimizer.get("betas", (0.9, 0.999)))
    # Rates are written per 256 images here.
    assert a.optimizer.lr == pytest.approx(b.optimizer.lr)
    assert a.get("clip_grad") == b.get("clip_grad")
    if "auto_scale_lr" in theirs:
        assert mine.auto_scale_lr.base_batch_size == theirs.auto_scale_lr.base_batch_size
    assert mine.param_scheduler[0].end == theirs.param_scheduler[0].end  # of the warm-up
    assert [s.type for s in mine.param_scheduler] == [s.type for s in theirs.param_scheduler]
    if "beit_vit" not in name:  # 800 epochs in the paper's table, 300 at mmpretrain
        assert mine.train_cfg.max_epochs == theirs.train_cfg.max_epochs
    assert mine.param_scheduler[1].get("milestones") == theirs.param_scheduler[1].get("milestones")


@pytest.mark.parametrize("name", PEER_OF)
def test_the_model_is_mmpretrains(name: str) -> None:
    mine, theirs = load(name), theirs_of(name)
    preprocessor = theirs.get("data_preprocessor", {})
    assert without(mine.model.data_preprocessor, "num_classes", "type") == without(
        preprocessor, "num_classes", "type"
    )
    differ = ["data_preprocessor", "backbone.init_cfg", "target_generator.init_cfg"]
    if "neck" not in mine.model:
        assert theirs.model.neck is None
        differ += ["neck"]
    if "-pre_" in name or name in SUPERVISED:
        differ += ["head", "init_cfg"]
    if name not in PRETRAINING:
        assert mine.model.head.in_channels == theirs.model.head.in_channels
    elif "convnextv2" in name:
        widths = mine.model.neck.get("in_channels"), mine.model.get("enc_dec_norm_dim")
        assert ARCHITECTURES[mine.model.backbone.arch]["channels"][-1] in widths
    match name.split("_")[0]:
        case "moco-v3":
            differ += ["backbone", "neck.in_channels"]
        case "spark":  # Tiny there
            differ += ["backbone.arch", "enc_dec_norm_dim"]
        case "simmim" if "convnextv2" in name:
            differ += ["type", "backbone"]
        case "vit-base-p16" if name in SUPERVISED:  # DeiT classifies by its class token
            differ += ["backbone.arch", "backbone.out_type", "backbone.final_norm"]
    assert without(mine.model, *differ) == without(theirs.model, *differ)


# Around ConvNeXt V2, SimMIM and MoCo v3 have this project's groups.
@pytest.mark.parametrize("name", [n for n in PEER_OF if "spark" in n or "convnextv2" not in n])
def test_rates_and_decay_of_each_parameter_are_mmpretrains(name: str) -> None:
    mine, theirs = narrow(load(name)), theirs_of(name)
    mine.model.backbone.pop("init_cfg", None)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = ROOT_MODELS.build(mine.model)
        names = {id(p): n for n, p in model.named_parameters()}

        def settings(optim_wrapper: dict[str, Any]) -> dict[str, tuple[str, str]]:
            wrapper = build_optim_wrapper(model, dict(optim_wrapper, type="OptimWrapper"))
            return {
                names[id(p)]: (f"{group['lr']:.9g}", f"{group['weight_decay']:.9g}")
                for group in wrapper.optimizer.param_groups
                for p in group["params"]
            }

        wrapper = without(theirs.optim_wrapper, "loss_scale")
        assert settings(mine.optim_wrapper) == settings(wrapper)


def test_moco_v3_sees_the_views_of_mmpretrain() -> None:
    for name in ("base_64xb64-coslr-300e_in1k", "atto_1xb32-coslr-12e_sample"):
        mine = load(f"moco-v3_convnextv2-{name}")
        theirs = theirs_of("moco-v3_convnextv2-base_64xb64-coslr-300e_in1k")
        views = mine.train_pipeline[1].to_dict()
        for view in views["transforms"]:
            view[0]["scale"] = 224
        assert views == theirs.train_pipeline[1].to_dict()
        assert mine.train_dataloader.dataset.dataset.pipeline == mine.train_pipeline


def test_masks_and_crops_are_those_of_the_methods() -> None:
    masks = dict(type="SimMIMMaskGenerator", mask_patch_size=32, model_patch_size=4, mask_ratio=0.6)
    names = [name for name in PRETRAINING if name.startswith("simmim")]
    for name in names:
        crop, _, mask, _ = load(name).train_dataloader.dataset.dataset.pipeline
        assert crop.crop_ratio_range == (0.67, 1.0)
        assert mask == dict(masks, input_size=crop.scale)
    beit = load("beit_vit-base-p16_32xb64-coslr-800e_in1k").train_pipeline
    theirs = theirs_of("beit_vit-base-p16_32xb64-coslr-800e_in1k").train_pipeline
    assert [without(step, "direction") for step in beit[1:]] == [
        without(step, "direction") for step in theirs[1:]
    ]
    crop = load("mae_vit-base-p16_64xb64-coslr-1600e_in1k").train_pipeline[0]
    assert (crop.scale, crop.crop_ratio_range) == (224, (0.2, 1.0))
