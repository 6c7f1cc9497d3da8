"""`HeldOutLoop`: right figures, the same figures however they are computed, nothing disturbed."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import sampler as mmengine_sampler
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.models import ConvNeXt
from PIL import Image
from torch import nn

import mmconvnextv2.datasets  # noqa: F401  (registers)
import mmconvnextv2.engine  # noqa: F401  (registers)
from mmconvnextv2.analysis.signal_summary import find_collapse
from mmconvnextv2.datasets.split_image_folder import SplitImageFolder  # noqa: F401  (registers)
from mmconvnextv2.datasets.stateless import StatelessDataset
from mmconvnextv2.engine.loops import HeldOutLoop, held_out
from mmconvnextv2.models import FCMAE
from mmconvnextv2.nn import random_masking
from mmconvnextv2.seeding import Stream, derive_seed

pytestmark = pytest.mark.integration

SIZE = 64
SHARE = 0.5
PIPELINE = [
    dict(type="LoadRandomResizedCrop", scale=SIZE, crop_ratio_range=(0.2, 1.0)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]
SAMPLER = dict(type="DefaultSampler", shuffle=False, round_up=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 smooth pictures of three classes, which differ in colour."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir()
        for i in range(16):
            small = rng.integers(0, 128, (6, 6, 3))
            small[..., 2 - label] += 120
            picture = Image.fromarray(small.astype(np.uint8)).resize((96, 80))
            picture.save(root / name / f"{i}.png")
    return root


def images(folder: Path, part: str = "held_out", **kwargs: Any) -> dict:
    inner = dict(
        type="SplitImageFolder",
        data_root=str(folder),
        part=part,
        held_out_share=SHARE,
        pipeline=PIPELINE,
        **kwargs,
    )
    return dict(type="StatelessDataset", dataset=inner)


def loader(dataset: dict, batch_size: int = 5, num_workers: int = 0, **kwargs: Any) -> dict:
    return dict(
        dataset=dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        sampler=SAMPLER,
        collate_fn=dict(type="default_collate"),
        **kwargs,
    )


@pytest.fixture
def model(tiny_arch: dict, randomize_grn) -> FCMAE:
    model = FCMAE(
        data_preprocessor=dict(type="FCMAEDataPreprocessor", mask_ratio=0.5),
        backbone=dict(
            type="ConvNeXtV2",
            arch=tiny_arch,
            drop_path_rate=0.3,
            gap_before_final_norm=False,
            output_norms=False,
        ),
        neck=dict(type="FCMAEDecoder", in_channels=tiny_arch["channels"][-1], num_channels=16),
    )
    return randomize_grn(model)


def make_runner(
    work_dir: Path,
    model: nn.Module,
    val_dataloader: dict,
    *,
    train_folder: Path | None = None,
    epochs: int = 2,
    validate: bool = True,
    hooks: tuple = (),
    resume: bool = False,
    **loop: Any,
) -> Runner:
    """A Runner with the loop; with `train_folder` it can train."""
    settings: dict[str, Any] = {}
    if validate:
        settings.update(
            val_dataloader=val_dataloader,
            val_cfg=dict(type="HeldOutLoop", **loop),
            val_evaluator=[],
        )
    if train_folder is not None:
        settings.update(
            train_dataloader=dict(
                dataset=images(train_folder, "train"),
                batch_size=4,
                sampler=dict(type="StatelessSampler"),
                drop_last=True,
                collate_fn=dict(type="default_collate"),
            ),
            train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-3)),
            default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
            custom_hooks=[dict(type="StatelessSeedHook"), dict(type="PortableCheckpointHook")],
        )
        settings["custom_hooks"] += hooks
    return Runner(
        model=model,
        work_dir=str(work_dir),
        randomness=dict(seed=0),
        default_scope="mmpretrain",
        experiment_name=f"held-out-{random.random()}",
        log_level="WARNING",
        resume=resume,
        **settings,
    )


def validate(tmp_path: Path, model: nn.Module, val_dataloader: dict, **loop: Any) -> dict:
    return make_runner(tmp_path, model, val_dataloader, **loop).val()


def distance(maps_CP: torch.Tensor) -> float:
    """Mean of (1 - cosine) / 2; a vector and its negative together have no mean to subtract."""
    cosine = torch.corrcoef(torch.cat([maps_CP, -maps_CP], dim=1))
    return ((1 - cosine) / 2).mean().item()


def reference(model: FCMAE, folder: Path, mask_ratio: float, seed: int) -> dict[str, float]:
    """The figures image by image in float64; the channels inside the blocks are mmpretrain's."""
    model = copy.deepcopy(model).eval().double()
    peer = ConvNeXt(
        arch=dict(depths=model.backbone.depths, channels=model.backbone.channels),
        use_grn=True,
        layer_scale_init_value=0.0,
        gap_before_final_norm=False,
    )
    missing, unexpected = peer.load_state_dict(model.backbone.state_dict(), strict=False)
    assert set(missing) == {"norm3.weight", "norm3.bias"} and not unexpected
    peer.double().eval()
    inside: list[list[torch.Tensor]] = [[], [], [], []]
    for maps_of_stage, stage in zip(inside, peer.stages, strict=True):
        for block in stage:
            block.pointwise_conv2.register_forward_pre_hook(
                lambda _, x, out=maps_of_stage: out.append(x[0][0].flatten(0, 1).T)
            )
    dataset = StatelessDataset(images(folder)["dataset"])
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    losses, diversities, pooled = [], [], []
    for i in range(len(dataset)):
        x = ((dataset[i]["inputs"].flip(0).double() - mean) / std)[None]
        generator = torch.Generator().manual_seed(derive_seed(seed, Stream.SAMPLE, -1, i))
        mask = random_masking(1, (2, 2), mask_ratio, generator=generator)
        with torch.no_grad():
            losses.append(model(x, mask=mask, mode="loss")["loss"].item())
            features = model.backbone(x)[-1]
            for maps_of_stage in inside:
                maps_of_stage.clear()
            peer(x)
        diversities.append([np.mean([distance(m) for m in maps]) for maps in inside])
        pooled.append(features[0].mean(dim=(1, 2)))
    share = np.linalg.svd(torch.stack(pooled).numpy(), compute_uv=False)
    share = share / share.sum()
    figures = {
        f"feature_diversity_stage{s}": value
        for s, value in enumerate(np.mean(diversities, axis=0), start=1)
    }
    rank = float(np.exp(-(share * np.log(share)).sum()))
    return dict(held_out_loss=float(np.mean(losses)), **figures, effective_rank=rank)


@pytest.mark.parametrize("loop", [{}, dict(seed=3, mask_ratio=0.3)], ids=["default", "other masks"])
def test_figures_against_float64(tmp_path: Path, folder: Path, model: FCMAE, loop: dict) -> None:
    metrics = validate(tmp_path, model, loader(images(folder)), **loop)
    expected = reference(model, folder, loop.get("mask_ratio", 0.5), loop.get("seed", 0))
    assert metrics == pytest.approx(expected, rel=1e-4)
    assert 15 <= len(StatelessDataset(images(folder)["dataset"])) <= 33


def test_the_same_figures_twice_and_on_any_number_of_workers(
    tmp_path: Path, folder: Path, model: FCMAE
) -> None:
    first = validate(tmp_path, model, loader(images(folder)))
    torch.rand(7), np.random.rand(7), random.random()
    assert validate(tmp_path, model, loader(images(folder))) == first
    workers = loader(images(folder), num_workers=2)
    runner = make_runner(tmp_path, model, workers)
    assert runner.val() == first
    assert runner.val_loop.run() == first
    other_batches = validate(tmp_path, model, loader(images(folder), batch_size=7))
    assert other_batches == pytest.approx(first, rel=1e-5)


def test_other_masks_give_another_loss_and_the_same_features(
    tmp_path: Path, folder: Path, model: FCMAE
) -> None:
    one, other = (validate(tmp_path, model, loader(images(folder)), seed=s) for s in (0, 1))
    assert one.pop("held_out_loss") != other.pop("held_out_loss")
    assert one == other


@pytest.mark.parametrize("round_up", [False, True])
def test_two_processes_give_the_figures_of_one(
    tmp_path: Path, folder: Path, model: FCMAE, monkeypatch, round_up: bool
) -> None:
    """Each rank measures its share; what the gathering would return to both is put together."""
    expected = validate(tmp_path, model, loader(images(folder)))
    parts: list[dict] = []
    settings = loader(images(folder))
    settings["sampler"] = dict(SAMPLER, round_up=round_up)
    runners = []
    for rank in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(mmengine_sampler, "get_dist_info", lambda rank=rank: (rank, 2))
            runners.append(make_runner(tmp_path, model, settings))
            runners[-1]._val_loop = runners[-1].build_val_loop(runners[-1]._val_loop)

    class Captured(Exception):
        pass

    def capture(part: dict) -> None:
        parts.append(part)
        raise Captured

    monkeypatch.setattr(held_out, "all_gather_object", capture)
    for runner in runners:
        with pytest.raises(Captured):
            runner.val_loop.run()
    assert all(part for part in parts)
    assert round_up or not set(parts[0]) & set(parts[1])
    monkeypatch.setattr(held_out, "all_gather_object", lambda part: parts)
    for runner in runners:
        assert runner.val_loop.run() == pytest.approx(expected, rel=1e-5)


class KeepMetrics(Hook):
    """Keeps the figures of every validation and the loss of every step."""

    def __init__(self) -> None:
        self.metrics: dict[int, dict] = {}
        self.losses: list[float] = []

    def after_val_epoch(self, runner, metrics=None) -> None:
        self.metrics[runner.epoch] = metrics

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append(outputs["loss"].item())


def test_the_same_figures_after_a_resume(tmp_path: Path, folder: Path, model: FCMAE) -> None:
    fresh = copy.deepcopy(model)
    whole, resumed = KeepMetrics(), KeepMetrics()
    common = dict(train_folder=folder)
    make_runner(tmp_path, model, loader(images(folder)), hooks=(whole,), **common).train()
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_1.pth"))
    runner = make_runner(
        tmp_path, fresh, loader(images(folder)), hooks=(resumed,), resume=True, **common
    )
    runner.train()
    assert set(whole.metrics) == {1, 2} and set(resumed.metrics) == {2}
    assert whole.metrics[2] == resumed.metrics[2]
    assert whole.metrics[1] != whole.metrics[2]


def test_training_is_the_same_with_and_without(tmp_path: Path, folder: Path, model: FCMAE) -> None:
    kept = []
    for with_loop in (True, False):
        hook, trained = KeepMetrics(), copy.deepcopy(model)
        runner = make_runner(
            tmp_path / str(with_loop),
            trained,
            loader(images(folder)),
            train_folder=folder,
            validate=with_loop,
            hooks=(hook,),
        )
        runner.train()
        assert bool(hook.metrics) is with_loop
        assert trained.backbone.out_indices == (3,)
        kept.append((hook.losses, trained.state_dict()))
    assert kept[0][0] == kept[1][0] and len(set(kept[0][0])) >= 6
    for name, tensor in kept[0][1].items():
        assert torch.equal(tensor, kept[1][1][name]), name


def test_modes_and_random_states_are_put_back(tmp_path: Path, folder: Path, model: FCMAE) -> None:
    runner = make_runner(tmp_path, model, loader(images(folder)))
    loop = runner.build_val_loop(runner._val_loop)
    model.train()
    model.neck.eval()
    modes = [module.training for module in model.modules()]
    draws = []
    for work in (lambda: None, loop.run):
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        work()
        draws.append((float(torch.rand(())), np.random.rand(), random.random()))
    assert draws[0] == draws[1]
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_neighbours_find_the_classes(tmp_path: Path, folder: Path, model: FCMAE) -> None:
    labelled = images(folder, label_by_folder=True)
    metrics = validate(tmp_path, model, loader(labelled), knn=dict(k=5))
    assert metrics["knn_top1"] > 95
    bank = loader(images(folder, "train", label_by_folder=True))
    knn = dict(bank=bank, queries=loader(labelled, batch_size=3), k=5)
    with_bank = validate(tmp_path, model, loader(images(folder)), knn=knn)
    assert with_bank.pop("knn_top1") > 95
    metrics.pop("knn_top1")
    assert with_bank == metrics


def test_labels_that_say_nothing_give_chance(tmp_path: Path, folder: Path, model: FCMAE) -> None:
    queries = loader(images(folder, label_by_folder=True))
    bank = copy.deepcopy(queries)
    # A bank in which every image has the label 0: only the first class is right.
    bank["dataset"]["dataset"]["pipeline"] = [SameLabel(), *PIPELINE]
    knn = dict(bank=bank, queries=queries, k=5)
    metrics = validate(tmp_path, model, loader(images(folder)), knn=knn)
    labels = [sample["data_samples"].gt_label.item() for sample in StatelessDataset(
        images(folder, label_by_folder=True)["dataset"])]  # fmt: skip
    assert metrics["knn_top1"] == pytest.approx(100 * labels.count(0) / len(labels))


class SameLabel:
    def __call__(self, results: dict) -> dict:
        return dict(results, gt_label=0)


def copy_channels(model: FCMAE) -> None:
    """Let all channels inside the blocks of stage 3 compute what the first one does."""
    with torch.no_grad():
        for block in model.backbone.stages[2]:
            for parameter in (*block.pointwise_conv1.parameters(), *block.grn.parameters()):
                parameter.copy_(parameter[:1].expand_as(parameter))


def forget_the_image(model: FCMAE) -> None:
    """Let the last stage see a constant."""
    with torch.no_grad():
        model.backbone.downsample_layers[-1][1].weight.zero_()
        nn.init.normal_(model.backbone.downsample_layers[-1][1].bias)


@pytest.mark.parametrize(
    "collapse,stage,word", [(copy_channels, 3, "stage 3"), (forget_the_image, 4, "effective rank")]
)
def test_a_collapsed_encoder_is_noticed_and_a_healthy_one_is_not(
    tmp_path: Path, folder: Path, model: FCMAE, collapse, stage: int, word: str
) -> None:
    healthy = validate(tmp_path, model, loader(images(folder)))
    assert find_collapse([healthy]) == ()
    collapse(model)
    collapsed = validate(tmp_path, model, loader(images(folder)))
    for records in ([collapsed], [healthy, collapsed]):
        assert any(word in sign for sign in find_collapse(records))
    for earlier in range(1, stage):
        name = f"feature_diversity_stage{earlier}"
        assert collapsed[name] == healthy[name]


@pytest.mark.parametrize("width", [1, 3], ids=["narrow", "wider"])
def test_a_fresh_encoder_is_not_called_collapsed(
    tmp_path: Path, folder: Path, tiny_arch: dict, width: int
) -> None:
    tiny_arch["channels"] = [width * channels for channels in tiny_arch["channels"]]
    model = FCMAE(
        data_preprocessor=dict(type="FCMAEDataPreprocessor", mask_ratio=0.5),
        backbone=dict(
            type="ConvNeXtV2", arch=tiny_arch, gap_before_final_norm=False, output_norms=False
        ),
        neck=dict(type="FCMAEDecoder", in_channels=tiny_arch["channels"][-1], num_channels=16),
    )
    assert find_collapse([validate(tmp_path, model, loader(images(folder)))]) == ()


def without_wrapper(settings: dict) -> None:
    settings["dataset"] = settings["dataset"]["dataset"]


@pytest.mark.parametrize(
    "change,loop,match",
    [
        (without_wrapper, {}, "wrap the dataset"),
        (lambda s: s.update(sampler=dict(SAMPLER, shuffle=True)), {}, "shuffle=True"),
        (lambda s: s.update(sampler=dict(type="StatelessSampler")), {}, "StatelessSampler"),
        (lambda s: s.update(drop_last=True), {}, "drop_last=True"),
        (lambda s: None, dict(knn=dict(bank={})), "both or neither"),
        (lambda s: None, dict(knn=dict(neighbours=3)), "knn may hold"),
        (lambda s: None, dict(knn=dict(k=0)), "k of at least 1"),
        (lambda s: None, dict(knn={}), "val_dataloader.*label_by_folder=True"),
    ],
)
def test_what_would_not_give_fixed_figures_is_refused(
    tmp_path: Path, folder: Path, model: FCMAE, change, loop: dict, match: str
) -> None:
    settings = loader(images(folder))
    change(settings)
    with pytest.raises(ValueError, match=match):
        validate(tmp_path, model, settings, **loop)


def test_an_evaluator_and_another_model_are_refused(tmp_path: Path, folder: Path, model) -> None:
    runner = make_runner(tmp_path, model, loader(images(folder)))
    with pytest.raises(ValueError, match=r"val_evaluator=\[\]"):
        HeldOutLoop(runner, loader(images(folder)), evaluator=[dict(type="Accuracy")])
    loop = HeldOutLoop(runner, loader(images(folder)), evaluator=[])
    runner.model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="measures an FCMAE, got Linear"):
        loop.run()
