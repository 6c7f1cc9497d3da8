"""The reconstruction hook in a real training run: same pictures, untouched training."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import mmconvnextv2.datasets  # noqa: F401  (registers)
import mmconvnextv2.engine  # noqa: F401  (registers)
from mmconvnextv2.engine.hooks.reconstruction import ReconstructionHook
from mmconvnextv2.models import FCMAE
from mmconvnextv2.visualization.prediction import draw_reconstructions, evaluation_mode

pytestmark = pytest.mark.integration

SIZE = 64
MARGIN, HEADER, GAP, SCALE = 12, 24, 6, 3  # of a grid of 64-px images


class NoisySquares(Dataset):
    """Squares on noise; a sample draws from all three global generators, as transforms do."""

    def __init__(self, length: int = 6) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = np.random.randint(0, 100, (3, SIZE, SIZE))
        noise = noise + random.randrange(20) + int(torch.randint(20, ()))
        noise[index % 3, 8:56, 8:56] += 100
        return {"inputs": torch.from_numpy(noise.astype(np.uint8))}


def make_model(tiny_arch: dict) -> FCMAE:
    torch.manual_seed(1)
    return FCMAE(
        backbone=dict(
            type="ConvNeXtV2",
            arch=tiny_arch,
            drop_path_rate=0.3,
            gap_before_final_norm=False,
            output_norms=False,
        ),
        neck=dict(type="FCMAEDecoder", in_channels=tiny_arch["channels"][-1], num_channels=16),
    )


class RecordLoss(ReconstructionHook):
    """The hook itself, which also notes every loss and the random states after training."""

    def __init__(self, draw: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.draw = draw
        self.losses: list[float] = []

    def before_train(self, runner: Runner) -> None:
        if self.draw:
            super().before_train(runner)

    def _draw(self, runner: Runner, name: str, step: int) -> None:
        if self.draw:
            super()._draw(runner, name, step)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):  # noqa: ANN001, ANN201
        self.losses.append(outputs["loss"].item())
        super().after_train_iter(runner, batch_idx, data_batch, outputs)


def train(work_dir: Path, model: FCMAE, hook: RecordLoss, train_cfg: dict) -> Runner:
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=NoisySquares(),
            batch_size=2,
            sampler=dict(type="DefaultSampler", shuffle=True),
            collate_fn=dict(type="default_collate"),
        ),
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-3)),
        custom_hooks=[hook],
        default_hooks=dict(checkpoint=None),
        randomness=dict(seed=0),
        default_scope="mmpretrain",
        experiment_name=f"reconstruction-{work_dir.name}-{id(hook)}",
        log_level="WARNING",
    )
    runner.train()
    return runner


def random_draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize(
    "by_epoch,train_cfg,names",
    [
        (True, dict(by_epoch=True, max_epochs=3), ["epoch_0002", "epoch_0003"]),
        (
            False,
            dict(by_epoch=False, max_iters=5),
            ["iter_0000002", "iter_0000004", "iter_0000005"],
        ),
    ],
    ids=["epochs", "iterations"],
)
def test_training_is_the_same_with_and_without_pictures(
    tmp_path, tiny_arch: dict, by_epoch: bool, train_cfg: dict, names: list[str]
) -> None:
    results = {}
    for draw in (True, False):
        model = make_model(tiny_arch)
        hook = RecordLoss(draw=draw, interval=2, by_epoch=by_epoch, num_images=4)
        runner = train(tmp_path / str(draw), model, hook, dict(train_cfg))
        results[draw] = hook.losses, random_draws(), model.state_dict()
        assert model.training and all(module.training for module in model.modules())
        folder = Path(runner.work_dir) / "reconstructions"
        found = sorted(path.stem for path in folder.glob("*")) if folder.exists() else []
        assert found == (names if draw else [])
    assert len(results[True][0]) >= 3 and len(set(results[True][0])) >= 3
    assert results[True][0] == results[False][0]
    assert results[True][1] == results[False][1]
    for name, tensor in results[True][2].items():
        assert torch.equal(tensor, results[False][2][name]), name
    logged = list((tmp_path / "True").glob("*/vis_data/vis_image/reconstruction_*.png"))
    assert len(logged) == len(names)


def test_pictures_of_a_run_show_the_same_images_and_masks(tmp_path, tiny_arch: dict) -> None:
    hook = RecordLoss(draw=True, num_images=4)
    train(tmp_path, make_model(tiny_arch), hook, dict(by_epoch=True, max_epochs=2))
    first, second = (
        np.asarray(Image.open(tmp_path / "reconstructions" / f"epoch_000{epoch}.png"))
        for epoch in (1, 2)
    )
    columns = [MARGIN + column * (SIZE * SCALE + GAP) for column in range(5)]
    assert first.shape == second.shape == (
        2 * MARGIN + HEADER + 4 * SIZE * SCALE + 3 * GAP, columns[4] - GAP + MARGIN, 3
    )  # fmt: skip
    assert np.array_equal(first[:, : columns[2]], second[:, : columns[2]])
    assert not np.array_equal(first[:, columns[2] : columns[3]], second[:, columns[2] : columns[3]])
    # Four of six evenly spaced images: 0, 2, 3, 5. The square is in channel index % 3 of BGR.
    for row, index in enumerate((0, 2, 3, 5)):
        top = MARGIN + HEADER + row * (SIZE * SCALE + GAP)
        middle = (slice(top + 60, top + 120), slice(MARGIN + 60, MARGIN + 120))
        assert first[middle].mean(axis=(0, 1)).argmax() == 2 - index % 3


def test_a_small_data_set_gives_fewer_rows(tiny_arch: dict) -> None:
    hook = ReconstructionHook(num_images=8)
    runner = SimpleNamespace(train_dataloader=SimpleNamespace(dataset=NoisySquares(length=3)))
    before = random_draws_after_seeding(lambda: None)
    assert random_draws_after_seeding(lambda: hook.before_train(runner)) == before
    assert len(hook._images) == 3


def test_a_wrapped_model_is_unwrapped(tmp_path, tiny_arch: dict) -> None:
    model = make_model(tiny_arch)
    shown = []
    runner = SimpleNamespace(
        model=nn.DataParallel(model),
        work_dir=tmp_path,
        logger="silent",
        visualizer=SimpleNamespace(add_image=lambda name, image, step: shown.append((image, step))),
        train_dataloader=SimpleNamespace(dataset=NoisySquares(length=2)),
    )
    hook = ReconstructionHook(seed=3)
    hook.before_train(runner)
    hook._draw(runner, "epoch_0001", step=7)
    ((image, step),) = shown
    assert step == 7
    assert np.array_equal(image, Image.open(tmp_path / "reconstructions" / "epoch_0001.png"))
    assert np.array_equal(image, draw_reconstructions(model, hook._images, seed=3))


def random_draws_after_seeding(work: Any) -> tuple[float, float, float]:
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    work()
    return random_draws()


def test_drawing_leaves_random_states_modes_and_gradients(tiny_arch: dict) -> None:
    model = make_model(tiny_arch)
    model.neck.eval()  # a part that is frozen while the rest trains
    images = [NoisySquares()[index]["inputs"] for index in range(2)]
    modes = {name: module.training for name, module in model.named_modules()}
    assert set(modes.values()) == {True, False}
    expected = random_draws_after_seeding(lambda: None)
    assert random_draws_after_seeding(lambda: draw_reconstructions(model, images)) == expected
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_seed_decides_the_masks(tiny_arch: dict) -> None:
    model = make_model(tiny_arch)
    images = [NoisySquares()[0]["inputs"]]
    trials = ((0, None, 0), (0, None, 7), (0, 0.3, 0), (1, None, 0), (2, None, 0))
    masked = []
    for seed, ratio, draws in trials:
        torch.rand(draws)
        picture = np.asarray(draw_reconstructions(model, images, seed=seed, mask_ratio=ratio))
        left = MARGIN + SIZE * SCALE + GAP
        grey = (picture[MARGIN + HEADER :, left : left + SIZE * SCALE] == 127).all(axis=-1)
        cells = grey[: SIZE * SCALE].reshape(2, 96, 2, 96).all(axis=(1, 3))
        masked.append(cells.tolist())
    assert masked[0] == masked[1]
    assert masked[3] != masked[0] or masked[4] != masked[0]
    assert np.sum(masked[0]) == 3 and np.sum(masked[2]) == 2  # of 4 cells, at 0.6 and at 0.3


def test_modes_come_back_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(RuntimeError, match="boom"), evaluation_mode(model):
        assert not model[0].training and not torch.is_grad_enabled()
        raise RuntimeError("boom")
    assert model.training and model[0].training and not model[1].training
    assert torch.is_grad_enabled()


def test_bad_arguments_are_refused(tiny_arch: dict) -> None:
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        ReconstructionHook(interval=0)
    with pytest.raises(ValueError, match="num_images must be at least 1, got -1"):
        ReconstructionHook(num_images=-1)
    model = make_model(tiny_arch)
    with pytest.raises(ValueError, match="no image"):
        draw_reconstructions(model, [])
    with pytest.raises(ValueError, match=r"strictly between 0 and 1, got 1\.5"):
        draw_reconstructions(model, [NoisySquares()[0]["inputs"]], mask_ratio=1.5)
    assert model.training
