"""Plans against loops that count one by one, and against figures worked out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from mmconvnextv2.analysis.plan import (
    LastingMemory,
    Measurement,
    Schedule,
    format_bytes,
    format_seconds,
    lasting_memory,
    make_plan,
    median_of_rounds,
    state_bytes,
    state_copies,
    trained_bytes,
)

pytestmark = pytest.mark.unit


def batches_of(rank: int, processes: int, num_images: int, batch: int, drop_last: bool) -> list:
    """The batches of one process in one epoch; the order is repeated until all shares are equal."""
    order = list(range(num_images))
    while len(order) % processes:
        order.append(order[len(order) % num_images])
    batches, current = [], []
    for position, index in enumerate(order):
        if position % processes == rank:
            current.append(index)
            if len(current) == batch:
                batches.append(current)
                current = []
    if current and not drop_last:
        batches.append(current)
    return batches


def run_by_counting(
    num_images: int, processes: int, batch: int, accumulation: int, epochs: int, drop_last: bool
) -> tuple[int, int, int]:
    """Iterations, updates and images of a run, counted one by one as mmengine's loop goes."""
    ranks = [batches_of(rank, processes, num_images, batch, drop_last) for rank in range(processes)]
    assert len({len(batches) for batches in ranks}) == 1
    last = epochs * len(ranks[0])
    iteration = updates = images = 0
    for _ in range(epochs):
        for step in range(len(ranks[0])):
            iteration += 1
            images += sum(len(batches[step]) for batches in ranks)
            if iteration % accumulation == 0 or iteration == last:
                updates += 1
    return iteration, updates, images


def test_epochs_are_counted_as_a_loop_counts_them():
    seen = 0
    for num_images, processes, batch, accumulation, drop_last in itertools.product(
        (1, 5, 16, 33, 50), (1, 2, 3, 8), (1, 3, 4), (1, 3, 4), (True, False)
    ):
        expected = run_by_counting(num_images, processes, batch, accumulation, 3, drop_last)
        schedule = Schedule(batch, accumulation, epochs=3, drop_last=drop_last)
        if expected[0] == 0:
            with pytest.raises(ValueError, match="do not fill one batch"):
                schedule.length(processes, num_images)
            continue
        length = schedule.length(processes, num_images)
        assert (length.iterations, length.updates, length.images) == expected
        seen += 1
    assert seen > 200


@pytest.mark.parametrize(("iterations", "accumulation", "updates"), [(10, 1, 10), (10, 4, 3)])
def test_iterations_do_not_shrink_with_more_processes(iterations, accumulation, updates):
    schedule = Schedule(2, accumulation, max_iterations=iterations)
    for processes in (1, 8):
        length = schedule.length(processes)
        assert (length.iterations, length.updates) == (iterations, updates)
        assert length.images == iterations * processes * 2


def test_the_published_recipe():
    """ImageNet-1K on 64 GPUs with 64 images each: 312 batches of 4096 an epoch."""
    schedule = Schedule(64, epochs=1600)
    lasting = LastingMemory(parameters=4, gradients=4, optimizer=8, averaged=4)
    measured = Measurement(seconds=0.25, batch=64, activations=1000)
    plan = make_plan(schedule, measured, lasting, processes=64, num_images=1_281_167)
    assert plan.length.iterations == plan.length.updates == 1600 * 312
    assert plan.length.images == 1600 * 312 * 4096
    assert plan.seconds == 1600 * 312 * 0.25
    assert plan.images_per_second == 4096 / 0.25
    assert not plan.measured
    # Gradients once more, in the buckets of distributed training.
    assert plan.memory == 4 + 4 + 4 + 8 + 4 + 1000
    alone = make_plan(schedule, measured, lasting, num_images=1_281_167)
    assert alone.measured and alone.memory == 4 + 4 + 8 + 4 + 1000
    assert alone.length.iterations == 1600 * 20018  # 1 281 167 / 64 = 20 018.2


def test_another_batch_and_efficiency_scale_the_step():
    schedule = Schedule(64, epochs=1)
    measured = Measurement(seconds=0.5, batch=16, activations=100)
    lasting = LastingMemory(0, 0, 0)
    for processes, seconds in ((1, 2.0), (4, 2.5)):  # four times the images; 80 % of the speed
        plan = make_plan(schedule, measured, lasting, processes, 6400, efficiency=0.8)
        assert plan.iteration_seconds == pytest.approx(seconds)
        assert plan.images_per_second == pytest.approx(processes * 64 / seconds)
        assert plan.seconds == pytest.approx(seconds * 100 / processes)
        assert plan.memory == 400 and not plan.measured


def test_memory_is_unknown_where_activations_were_not_measured():
    plan = make_plan(Schedule(2, epochs=1), Measurement(1.0, 2), LastingMemory(1, 1, 1), 1, 10)
    assert plan.memory is None and plan.measured


OPTIMIZERS = {
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1), 0),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1),
    "AdamW": (lambda p: torch.optim.AdamW(p), 2),
    "AMSGrad": (lambda p: torch.optim.AdamW(p, amsgrad=True), 3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lasting_memory_by_hand(name):
    make, copies = OPTIMIZERS[name]
    net = nn.Sequential(nn.Linear(100, 50), nn.BatchNorm1d(50), nn.Linear(50, 10))
    net[2].requires_grad_(False)
    trained, frozen, buffers = 100 * 50 + 50 + 2 * 50, 50 * 10 + 10, 2 * 50
    assert trained_bytes(net) == 4 * trained
    assert state_copies(make) == copies
    optimizer = make([p for p in net.parameters() if p.requires_grad])
    net(torch.randn(4, 100)).sum().backward()
    optimizer.step()
    # Beside the copies, AdamW has a counter a tensor.
    assert 0 <= state_bytes(optimizer) - copies * 4 * trained <= 4 * 4
    memory = lasting_memory(net, 4 * copies * trained, averaged=True)
    # The counter of batches is an integer of 8 bytes.
    assert memory.parameters == memory.averaged == 4 * (trained + frozen + buffers) + 8
    assert memory.gradients == 4 * trained
    assert memory.total(2) - memory.total(1) == 4 * trained


def test_a_median_of_rounds_sees_the_rhythm_and_not_the_stray():
    # Every fourth iteration steps the optimizer; in the second round something saves for 100 s.
    seconds = [1.0, 1.0, 1.0, 5.0] * 5
    seconds[5] += 100.0
    assert median_of_rounds(seconds, 4) == 2.0
    assert median_of_rounds([1.0, 3.0, 9.0], 1) == 3.0
    assert median_of_rounds([1.0, 3.0, 9.0], 2) == 2.0  # what is left over does not count
    with pytest.raises(ValueError, match="3 iterations hold no round of 4"):
        median_of_rounds([1.0, 3.0, 9.0], 4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.21234, "0.212 s"),
        (59.4, "59.4 s"),
        (59.7, "1 min 0 s"),
        (61, "1 min 1 s"),
        (3550, "59 min 10 s"),
        (3599, "1 h 0 min"),
        (3 * 3600 + 59, "3 h 1 min"),
        (47.5 * 3600, "47 h 30 min"),
        (48 * 3600, "2.0 days"),
        (100 * 86400, "100.0 days"),
    ],
)
def test_seconds_in_words(seconds, text):
    assert format_seconds(seconds) == text


def test_bytes_in_words():
    assert format_bytes(1_500_000) == "1.5 MB"
    assert format_bytes(12_340_000_000) == "12.34 GB"
    assert format_bytes(999_000_000) == "999.0 MB"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Schedule(0, epochs=1), "per_device must be at least 1, got 0"),
        (lambda: Schedule(1, 0, epochs=1), "accumulation must be at least 1"),
        (lambda: Schedule(1), "either epochs or max_iterations"),
        (lambda: Schedule(1, epochs=1, max_iterations=1), "either epochs or max_iterations"),
        (lambda: Schedule(1, epochs=1).length(0, 10), "processes must be at least 1, got 0"),
        (lambda: Schedule(1, epochs=1).length(1, 0), "at least one image, got 0"),
        (lambda: Schedule(1, epochs=1).length(1), "at least one image, got None"),
        (lambda: Schedule(8, epochs=1).length(2, 9), "9 images do not fill one batch of 8"),
        (lambda: Measurement(0.0, 1), "more than 0 seconds, got 0.0"),
        (lambda: Measurement(float("nan"), 1), "more than 0 seconds, got nan"),
        (lambda: Measurement(1.0, 0), "batch must be at least 1, got 0"),
        *(
            (
                lambda e=e: make_plan(
                    Schedule(1, epochs=1), Measurement(1, 1), LastingMemory(0, 0, 0), 1, 1, e
                ),
                "efficiency must be more than 0 and at most 1",
            )
            for e in (0.0, 1.1, -1.0)
        ),
    ],
)
def test_impossible_plans_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
