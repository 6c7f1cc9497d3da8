"""tools/model_converters/publish_model.py: what is kept, what it is called, what is refused."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from safetensors import safe_open

import mmconvnextv2.engine
import mmconvnextv2.models  # noqa: F401

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "model_converters" / "publish_model.py"
ARCH = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8])
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("publish_model", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config() -> Config:
    cfg = Config.fromfile(
        ROOT / "configs/convnextv2/convnextv2-atto_fcmae-pre_32xb32-coslr-600e_in1k.py"
    )
    cfg.model.backbone.arch = ARCH
    cfg.model.head.update(in_channels=8, num_classes=2)
    cfg.model.backbone.init_cfg.checkpoint = "work_dirs/before/epoch_1.pth"
    return cfg


class Numbers(torch.utils.data.Dataset):
    metainfo = dict(classes=("cat", "dog"))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(inputs=torch.rand(3, 32, 32) * 255, data_samples=sample(index % 2))


def sample(label: int) -> Any:
    from mmpretrain.structures import DataSample

    return DataSample().set_gt_label(label)


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Runner]:
    """A real run of two steps with averaged weights, and its Runner."""
    work_dir = tmp_path_factory.mktemp("work_dir")
    settings = config.model.copy()
    settings.pop("train_cfg", None)
    settings.backbone = {**settings.backbone, "init_cfg": None}
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(settings)
    runner = Runner(
        model,
        str(work_dir),
        train_dataloader=dict(
            dataset=Numbers(),
            batch_size=2,
            sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=dict(type="pseudo_collate"),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.1)),
        custom_hooks=[dict(type="EMAHook", momentum=0.4), dict(type="PortableCheckpointHook")],
        default_scope="mmpretrain",
        experiment_name="toy-recipe",
        cfg=config,
    )
    runner.train()
    return work_dir / "epoch_1.pth", runner


def averaged(runner: Runner) -> dict[str, torch.Tensor]:
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    return hook.ema_model.module.state_dict()


def last_step(runner: Runner) -> dict[str, torch.Tensor]:
    return runner.model.state_dict()


def publish(tool: ModuleType, *arguments: str | Path) -> int:
    return tool.main([*map(str, arguments), "--license", "CC-BY-NC-4.0"])


@pytest.mark.parametrize(("flag", "reference"), [("--ema", averaged), ("--no-ema", last_step)])
def test_weights_are_the_runs_and_nothing_else_is_kept(
    tool: ModuleType, run: tuple, tmp_path: Path, flag: str, reference: Any
) -> None:
    checkpoint, runner = run
    content = torch.load(checkpoint, weights_only=True)
    assert {"optimizer", "message_hub", "ema_state_dict"} <= set(content)
    assert publish(tool, checkpoint, tmp_path / "new" / "toy.pth", flag) == 0
    (path,) = (tmp_path / "new").iterdir()
    published = torch.load(path, weights_only=True)
    assert set(published) == {"state_dict", "meta"}
    expected = reference(runner)
    assert published["state_dict"].keys() == expected.keys()
    assert all(torch.equal(published["state_dict"][key], expected[key]) for key in expected)
    other = averaged(runner) if reference is last_step else last_step(runner)
    assert any(not torch.equal(expected[key], other[key]) for key in other), "a run that averaged"
    assert path.stat().st_size < checkpoint.stat().st_size / 2


def test_meta_tells_what_a_user_needs(tool: ModuleType, run: tuple, tmp_path: Path) -> None:
    publish(tool, run[0], tmp_path / "toy.pth", "--ema")
    (path,) = tmp_path.iterdir()
    meta = torch.load(path, weights_only=True)["meta"]
    cfg = Config.fromstring(meta.pop("cfg"), ".py")
    assert cfg.model.backbone.arch == ARCH
    versions = meta.pop("versions")
    assert versions["torch"] == torch.__version__ and "mmengine" in versions
    assert meta == dict(
        model="ImageClassifier",
        arch=ARCH,
        input_size=[224, 224],
        mean=MEAN,
        std=STD,
        channel_order="RGB",
        pretrained="work_dirs/before/epoch_1.pth",
        config="toy-recipe",
        license="CC-BY-NC-4.0",
        weights="averaged",
        dataset_meta=dict(classes=["cat", "dog"]),
        epoch=1,
        iter=2,
    )


def test_name_has_the_hash_that_torch_hub_checks(
    tool: ModuleType, run: tuple, tmp_path: Path
) -> None:
    publish(tool, run[0], tmp_path / "toy.pth", "--ema")
    publish(tool, run[0], tmp_path / "toy.safetensors", "--ema")
    paths = sorted(tmp_path.iterdir())
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.stem == f"toy-{digest[:8]}"
        assert torch.hub.HASH_REGEX.search(path.name).group(1) == digest[:8]
    publish(tool, run[0], tmp_path / "toy.pth", "--ema")
    publish(tool, run[0], tmp_path / "toy.safetensors", "--ema")
    assert sorted(tmp_path.iterdir()) == paths, "the same content has the same name"


def test_safetensors_hold_the_same_as_strings(tool: ModuleType, run: tuple, tmp_path: Path) -> None:
    publish(tool, run[0], tmp_path / "toy.pth", "--ema")
    publish(tool, run[0], tmp_path / "toy.safetensors", "--ema")
    pickled = torch.load(next(tmp_path.glob("*.pth")), weights_only=True)
    with safe_open(next(tmp_path.glob("*.safetensors")), "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(pickled["state_dict"])
        for key, tensor in pickled["state_dict"].items():
            assert torch.equal(file.get_tensor(key), tensor)
    assert metadata.pop("format") == "pt"
    assert metadata["license"] == "CC-BY-NC-4.0"
    plain = {
        k: v if isinstance(pickled["meta"][k], str) else json.loads(v) for k, v in metadata.items()
    }
    assert plain == pickled["meta"]


def test_published_files_need_torch_alone(tool: ModuleType, run: tuple, tmp_path: Path) -> None:
    publish(tool, run[0], tmp_path / "toy.pth", "--ema")
    publish(tool, run[0], tmp_path / "toy.safetensors", "--ema")
    code = """
import sys, torch
from safetensors.torch import load_file
pth, safe = sys.argv[1:]
state = torch.load(pth, weights_only=True)["state_dict"]
assert state.keys() == load_file(safe).keys()
assert not {"mmengine", "mmcv", "mmpretrain", "mmconvnextv2"} & set(sys.modules)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    files = sorted(map(str, tmp_path.iterdir()), key=lambda name: name.endswith(".safetensors"))
    subprocess.run([sys.executable, "-c", code, *files], check=True, cwd=tmp_path, env=environment)


# Checkpoints by hand, for what a run does not produce.


@pytest.fixture
def content(config: Config) -> dict[str, Any]:
    """A checkpoint without averaged weights."""
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build({**config.model, "train_cfg": None})
    meta = dict(cfg=config.pretty_text, experiment_name="by-hand", epoch=3)
    return dict(state_dict=model.state_dict(), meta=meta, optimizer={})


def refused(
    tool: ModuleType, capsys: pytest.CaptureFixture, tmp_path: Path, content: Any, *flags: str
) -> str:
    """What the tool says to a checkpoint that it refuses, having written nothing."""
    (tmp_path / "in").mkdir(parents=True)
    torch.save(content, tmp_path / "in" / "run.pth")
    assert publish(tool, tmp_path / "in" / "run.pth", tmp_path / "out" / "toy.pth", *flags) == 2
    assert not list(tmp_path.glob("out/**/*")) and not list(tmp_path.glob(".*"))
    error = capsys.readouterr().err
    assert error.startswith("publish_model.py: ") and error.count("\n") == 1
    return error


def test_the_choice_between_two_sets_of_weights_has_to_be_made(
    tool: ModuleType, run: tuple, content: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    both = torch.load(run[0], weights_only=True)
    assert "--ema (averaged" in refused(tool, capsys, tmp_path / "a", both)
    assert "no averaged weights" in refused(tool, capsys, tmp_path / "b", content, "--ema")


def test_config_from_a_file(
    tool: ModuleType, content: dict, config: Config, tmp_path: Path
) -> None:
    del content["meta"]
    torch.save(content, tmp_path / "run.pth")
    config.dump(tmp_path / "recipe.py")
    options = ("--config", tmp_path / "recipe.py")
    assert publish(tool, tmp_path / "run.pth", tmp_path / "a" / "toy.pth", *options) == 0
    (path,) = (tmp_path / "a").iterdir()
    meta = torch.load(path, weights_only=True)["meta"]
    assert (meta["config"], meta["arch"], meta["input_size"]) == ("recipe", ARCH, [224, 224])
    assert (meta["weights"], meta["dataset_meta"]) == ("last step", {})


@pytest.mark.parametrize(
    ("name", "model", "size"),
    [
        ("fcmae/fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py", "FCMAE", [160, 160]),
        ("mask_rcnn/mask-rcnn_convnextv2-atto_fpn_8xb4-amp-lsj-3x_coco.py", "MaskRCNN", [1024] * 2),
        (
            "upernet/convnextv2-huge_upernet_8xb2-amp-160k_ade20k-640x640.py",
            "EncoderDecoder",
            [640, 640],
        ),
    ],
)
def test_dumped_configs_of_all_tasks_are_read_as_data(
    tool: ModuleType, name: str, model: str, size: list[int]
) -> None:
    config = Config.fromfile(ROOT / "configs" / name)
    settings = tool.read_settings(config.pretty_text)
    as_lists = json.loads(json.dumps(settings["model"]))
    assert as_lists == json.loads(json.dumps(config.model.to_dict()))
    channels = dict(atto=40, huge=352)[config.model.backbone.arch]
    state = {"backbone.downsample_layers.0.0.weight": torch.empty(channels, 3, 4, 4)}
    described = tool.describe(settings, state)
    assert (described["model"], described["input_size"]) == (model, size)
    assert (described["mean"], described["std"]) == (MEAN, STD)
    assert described["channel_order"] == "RGB"


def test_a_config_in_a_checkpoint_is_not_run(
    tool: ModuleType, content: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trap = tmp_path / "trap"
    content["meta"]["cfg"] = f"model = dict(type=open({str(trap)!r}, 'w').name)"
    assert "not written as plain values" in refused(tool, capsys, tmp_path / "a", content)
    assert not trap.exists()


def test_what_is_refused(
    tool: ModuleType, content: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cases: list[tuple[str, Any]] = [
        ("give --config", {**content, "meta": {}}),
        ("is no checkpoint of a training run", content["state_dict"]),
        ("is no checkpoint of a training run", official(content)),
        ("hold NaN or infinity: head.fc.bias", broken(content)),
        ("the weights have a stem of [6]", other_channels(content)),
        ("the config lacks model.backbone.arch", lacking_arch(content)),
    ]
    for number, (message, case) in enumerate(cases):
        assert message in refused(tool, capsys, tmp_path / str(number), case), message


def official(content: dict) -> dict:
    return dict(model=content["state_dict"], args=argparse.Namespace(lr=1))


def broken(content: dict) -> dict:
    state = {**content["state_dict"], "head.fc.bias": torch.tensor([1.0, float("nan")])}
    return {**content, "state_dict": state}


def other_channels(content: dict) -> dict:
    key = "backbone.downsample_layers.0.0.weight"
    return {**content, "state_dict": {**content["state_dict"], key: torch.zeros(6, 3, 4, 4)}}


def lacking_arch(content: dict) -> dict:
    cfg = content["meta"]["cfg"].replace("arch=", "shape=")
    return {**content, "meta": {**content["meta"], "cfg": cfg}}


def test_files_that_are_no_checkpoints(
    tool: ModuleType, content: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty.pth").touch()
    torch.save(dict(state_dict={}, meta=Poison()), tmp_path / "poison.pth")
    torch.save(content, tmp_path / "run.pth")
    cases = [
        ("empty.pth", "toy.pth", "0 bytes"),
        ("poison.pth", "toy.pth", "cannot be read"),
        ("missing.pth", "toy.pth", "does not exist"),
        ("run.pth", "toy.onnx", "has to end in .pth or .safetensors"),
    ]
    for source, out, message in cases:
        assert publish(tool, tmp_path / source, tmp_path / "a" / out) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("a/*")) + list(tmp_path.glob("a/.*"))


class Poison:
    """Unpickling it runs a function."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("poisoned",)


def test_nothing_is_left_when_writing_fails(
    tool: ModuleType,
    content: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    torch.save(content, tmp_path / "run.pth")

    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert publish(tool, tmp_path / "run.pth", tmp_path / "a" / "toy.pth") == 2
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.glob("a/*")) + list(tmp_path.glob("a/.*"))


def test_the_licence_has_to_be_said(tool: ModuleType, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.main(["in.pth", "out.pth"])
    assert stop.value.code == 2 and "--license" in capsys.readouterr().err
