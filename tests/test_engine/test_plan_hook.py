"""What `PlanHook` logs, in real runs whose clock stands still until something lets it go on."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook, LoggerHook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmconvnextv2.engine.hooks import plan_hook
from mmconvnextv2.engine.hooks.plan_hook import PlanHook

pytestmark = pytest.mark.unit

CONFIGS = Path(__file__).parents[2] / "configs"
BATCH = 4
EPOCH = 20
"""Iterations of an epoch."""

WINDOW = dict(warmup=4, window=8)


class Clock:
    """Shows the time that others let pass."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def __deepcopy__(self, memo):
        """The Runner copies its arguments, and there is one time for all."""
        return self


class Images(torch.utils.data.Dataset):
    """Images that take `seconds` each to read."""

    def __init__(self, clock, seconds, length):
        self.clock, self.seconds, self.length = clock, seconds, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.clock.now += self.seconds
        return dict(inputs=torch.ones(2))


class Model(BaseModel):
    """A forward pass of one second."""

    def __init__(self, clock):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)
        self.clock = clock

    def forward(self, inputs, mode="tensor"):
        self.clock.now += 1.0
        loss = self.linear(inputs).mean()
        return dict(loss=loss) if mode == "loss" else [loss]


class SlowAdamW(torch.optim.AdamW):
    """A step of four seconds."""

    def __init__(self, parameters, clock):
        super().__init__(parameters)
        self.clock = clock

    def step(self, closure=None):
        self.clock.now += 4.0
        return super().step(closure)


class Pauses(Hook):
    """Time that belongs to no iteration, and one stray minute within the eleventh."""

    def __init__(self, clock):
        self.clock = clock

    def before_train_epoch(self, runner):
        self.clock.now += 500.0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 10:
            self.clock.now += 60.0


def run(
    work_dir,
    *,
    decode=0.0625,
    accumulation=1,
    sampler="DefaultSampler",
    resume=False,
    plan=None,
    hooks=(),
    wanted="plan of this run",
    **train_cfg,
):
    """Train, and return the plans that were logged, or what else begins as `wanted`."""
    clock = Clock()
    model = Model(clock)
    options = dict(batch_size=BATCH, num_workers=0, collate_fn=dict(type="default_collate"))
    images, scenes = Images(clock, decode, EPOCH * BATCH), Images(clock, 100.0, BATCH)
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        experiment_name=f"{work_dir.name}-{resume}",
        train_dataloader=dict(**options, dataset=images, sampler=dict(type=sampler)),
        train_cfg=dict(by_epoch="max_epochs" in train_cfg, **train_cfg),
        optim_wrapper=OptimWrapper(
            SlowAdamW(model.parameters(), clock), accumulative_counts=accumulation
        ),
        val_dataloader=dict(**options, dataset=scenes, sampler=dict(type="DefaultSampler")),
        val_cfg=dict(),
        val_evaluator=Evaluator([]),
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=7),
            checkpoint=dict(type="CheckpointHook", interval=1),
        ),
        custom_hooks=[Pauses(clock), PlanHook(clock=clock, **(plan or WINDOW)), *hooks],
        resume=resume,
        cfg=dict(
            train_dataloader=dict(batch_size=BATCH),
            optim_wrapper=dict(accumulative_counts=accumulation),
        ),
    )
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    runner.logger.addHandler(handler)
    runner.train()
    return [message for message in messages if message.startswith(wanted)]


def test_an_epoch_based_run(tmp_path):
    (plan,) = run(tmp_path, max_epochs=4)
    # 4 x 1/16 s of reading, 1 s forward, 4 s of the optimizer; 4 skipped, 8 measured.
    assert "measured in iterations 5 to 12, on " in plan
    assert "an iteration takes 5.25 s (median of 8 rounds of 1), 0.7619 images a second" in plan
    assert "1 (processes) x 4 (images a batch) x 1 (accumulated batches) = 4 images a step" in plan
    # Three parameters; AdamW also counts the steps of both tensors.
    assert "parameters 0.0 MB, gradients 0.0 MB, optimizer state 0.0 MB" in plan
    assert "activations are measured on GPUs only" in plan
    # 68 x 5.25 = 357 s, 80 x 5.25 = 420 s
    assert "68 iterations are left and take 5 min 57 s; all 80 take 7 min 0 s" in plan
    assert plan.index("measured in") < plan.index("extrapolated from that") < plan.index("68 iter")
    assert "waiting for data" not in plan


def test_a_first_guess_comes_early_and_in_short_runs_too(tmp_path):
    settings = dict(wanted="first guess", sampler="InfiniteSampler")
    # 77 x 5.25 = 404.25 s, and 1 x 5.25
    for iterations, guess in ((80, ["77 iterations are left and take 6 min 44 s"]), (3, [])):
        said = run(tmp_path / str(iterations), max_iters=iterations, **settings)
        assert [line.split(": ")[1].split(",")[0] for line in said] == guess


def test_accumulated_batches_share_one_step_of_the_optimizer(tmp_path):
    (plan,) = run(tmp_path, max_epochs=4, accumulation=4)
    # A quarter of the 4 s each. The 8 iterations of the window become three rounds of 4.
    assert "measured in iterations 5 to 16, on " in plan
    assert "an iteration takes 2.25 s (median of 3 rounds of 4)" in plan
    assert "x 4 (accumulated batches) = 16 images a step" in plan
    assert "64 iterations are left and take 2 min 24 s; all 80 take 3 min 0 s" in plan


def test_an_iteration_based_run_without_its_validations(tmp_path):
    (plan,) = run(tmp_path, max_iters=50, val_interval=6, sampler="InfiniteSampler")
    assert "an iteration takes 5.25 s" in plan
    assert "38 iterations are left and take 3 min 20 s" in plan  # 199.5 s
    assert "all 50 take 4 min 22 s" in plan  # 262.5 s


def test_a_validation_after_every_iteration(tmp_path):
    """How long its batch was waited for is unknown then, and left out."""
    (plan,) = run(tmp_path, max_iters=20, val_interval=1, sampler="InfiniteSampler")
    assert "an iteration takes 5 s" in plan


def test_epochs_shorter_than_a_round(tmp_path, monkeypatch):
    """Pauses between epochs cost a round the wait for its first batch, and nothing else."""
    monkeypatch.setitem(globals(), "EPOCH", 2)
    (plan,) = run(tmp_path, max_epochs=20, accumulation=4, val_interval=20)
    assert "an iteration takes 2.12 s (median of 3 rounds of 4)" in plan  # 2.25 - 0.25 / 2


def test_a_resumed_run_measures_anew_and_counts_what_is_left(tmp_path):
    assert len(run(tmp_path, max_epochs=1)) == 1
    (plan,) = run(tmp_path, max_epochs=4, resume=True)
    assert "measured in iterations 25 to 32, on " in plan
    assert "48 iterations are left and take 4 min 12 s; all 80 take 7 min 0 s" in plan


def test_a_resumed_run_that_ends_within_the_measurement_has_no_plan(tmp_path):
    run(tmp_path, max_epochs=1)
    assert run(tmp_path, max_epochs=2, resume=True, plan=dict(warmup=4, window=EPOCH - 4)) == []


def test_slow_data_is_named(tmp_path):
    (plan,) = run(tmp_path, max_epochs=4, decode=1.25)
    assert "an iteration takes 10 s" in plan
    assert "waiting for data takes 50% of an iteration: more workers or faster decoding" in plan


@pytest.mark.parametrize("iterations", [11, 12, 13])
def test_a_run_that_ends_within_the_measurement_has_no_plan(tmp_path, iterations):
    plans = run(tmp_path, max_iters=iterations, sampler="InfiniteSampler")
    assert len(plans) == (1 if iterations == 13 else 0)


def test_other_ranks_are_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_hook, "is_main_process", lambda: False)
    assert run(tmp_path, max_epochs=4) == []


def test_the_peak_is_read_before_the_log_resets_it(tmp_path, monkeypatch):
    """The log, here every 7 iterations, resets the peak that torch keeps."""
    peak = SimpleNamespace(value=0)

    class Allocator(Hook):
        priority = "VERY_HIGH"

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            used = 3_000_000_000 if runner.iter == 6 else 1_000_000_000
            peak.value = max(peak.value, used)

    class Log(Hook):
        priority = LoggerHook.priority

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if (runner.iter + 1) % 7 == 0:
                peak.value = 0

    monkeypatch.setattr(plan_hook, "_peak_bytes", lambda device: peak.value)
    (plan,) = run(tmp_path, max_epochs=4, hooks=[Allocator(), Log()])
    assert "memory: 3.00 GB at the peak" in plan
    assert "activations and all else 3.00 GB" in plan


@pytest.mark.gpu
def test_the_peak_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = plan_hook._peak_bytes(device)
    torch.empty(2**28, dtype=torch.uint8, device=device)
    assert plan_hook._peak_bytes(device) - before >= 2**28


TASKS = {
    # Config: terms of one process, iterations of a round.
    "fcmae/fcmae_convnextv2-base_64xb64-coslr-1600e_in1k.py": ((1, 64, 1), 8),
    "convnextv2/convnextv2-base_fcmae-pre_32xb32-coslr-100e_in1k.py": ((1, 32, 1), 8),
    "mask_rcnn/mask-rcnn_convnextv2-base_fpn_8xb4-amp-lsj-3x_coco.py": ((1, 4, 1), 4),
    "upernet/convnextv2-base_upernet_8xb2-amp-160k_ade20k-512x512.py": ((1, 2, 1), 4),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_its_terms_and_its_rounds(name):
    cfg = Config.fromfile(CONFIGS / name, import_custom_modules=False)
    loader = SimpleNamespace(num_workers=cfg.train_dataloader.num_workers)
    runner = SimpleNamespace(
        cfg=cfg,
        world_size=1,
        train_dataloader=loader,
        model=torch.nn.Linear(1, 1),
        max_iters=10**6,
        iter=0,
    )
    hook = HOOKS.build(dict(type="PlanHook"))
    hook.before_train(runner)
    terms, length = TASKS[name]
    assert (hook._terms.world_size, hook._terms.per_device, hook._terms.accumulation) == terms
    assert hook._round == length and hook._needed % length == 0 and hook._needed >= 50


@pytest.mark.parametrize("arguments", [dict(warmup=-1), dict(window=0)])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="warmup must be at least 0 and window 1"):
        PlanHook(**arguments)
