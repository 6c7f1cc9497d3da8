"""One process against several: the step of FCMAE under DistributedDataParallel."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmconvnextv2.benchmark.compare import Settings
from mmconvnextv2.benchmark.measure import Timing, measure, synchronize
from mmconvnextv2.benchmark.ours import draw_images, draw_mask
from mmconvnextv2.benchmark.peers import LeftOut
from mmconvnextv2.benchmark.steps import TrainingStep, adamw
from mmconvnextv2.nn import FCMAE, VisibleCells

TIMEOUT = timedelta(minutes=10)


def measure_processes(settings: Settings, number: int = 2) -> dict[int, Timing]:
    """Seconds of a step in one process alone, and in several that share the machine's cores.

    All processes are there throughout and the two take turns; while one works alone, the others
    wait. Each process has a batch of its own, and the threads are divided among them.

    Args:
        settings: how to measure; ``threads`` are torch's current ones.
        number: how many processes.

    Raises:
        LeftOut: there are fewer GPUs than processes.
    """
    if settings.device.type == "cuda" and torch.cuda.device_count() < number:
        raise LeftOut(f"{number} processes need {number} GPUs, here is {torch.cuda.device_count()}")
    plain = replace(settings, progress=_say_nothing)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (number, plain, torch.get_num_threads(), folder)
        torch.multiprocessing.spawn(_work, arguments, nprocs=number)
        samples = json.loads((Path(folder) / "samples.json").read_text(encoding="utf-8"))
    return {int(processes): Timing(tuple(values)) for processes, values in samples.items()}


def _work(rank: int, number: int, settings: Settings, threads: int, folder: str) -> None:
    cuda = settings.device.type == "cuda"
    if cuda:
        settings = replace(settings, device=torch.device("cuda", rank))
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=number,
        timeout=TIMEOUT,
    )
    try:
        together = _training_step(settings, _distribute)
        alone = _training_step(settings, lambda model: model) if rank == 0 else None

        def step_alone() -> None:
            if alone is not None:
                torch.set_num_threads(threads)
                alone()
                synchronize(settings.device)
            dist.barrier()

        def step_together() -> None:
            torch.set_num_threads(max(1, threads // number))
            together()
            synchronize(settings.device)
            dist.barrier()

        timings = measure(
            {"1": step_alone, str(number): step_together},
            repeat=settings.repeat,
            warmup=settings.warmup,
            device=settings.device,
        )
        if rank == 0:
            samples = {name: timing.samples for name, timing in timings.items()}
            (Path(folder) / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def _training_step(settings: Settings, wrap: Callable[[nn.Module], nn.Module]) -> TrainingStep:
    torch.manual_seed(settings.seed)
    model = wrap(FCMAE.build(settings.arch).to(settings.device))
    images = draw_images(settings)
    cells = VisibleCells.from_mask(draw_mask(settings))

    def loss() -> torch.Tensor:
        return model(images, mask=cells, mode="loss")["loss"]

    return TrainingStep(model, loss, settings.device, settings.dtype, adamw(model))


def _distribute(model: nn.Module) -> nn.Module:
    # Without device_ids nothing is scattered: what a step needs is on its device already.
    return DistributedDataParallel(model)


def _say_nothing(line: str) -> None:
    """A progress display for processes without a terminal, which a lambda cannot be sent to."""
