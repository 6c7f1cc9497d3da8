"""Turns, medians and quartiles, checked with a clock that only the calls advance."""

from __future__ import annotations

import gc

import pytest

from mmconvnextv2.benchmark.measure import Timing, measure

pytestmark = pytest.mark.unit


class FakeMachine:
    """A clock, and calls that advance it by given amounts and keep a diary."""

    def __init__(self) -> None:
        self.now = 0.0
        self.diary: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str, durations):
        remaining = iter(durations)

        def run() -> None:
            self.diary.append(name)
            self.now += next(remaining)

        return run


def test_alternatives_take_turns_and_each_round_starts_with_another():
    machine = FakeMachine()
    calls = {name: machine.call(name, [1.0] * 9) for name in "abc"}
    measure(calls, repeat=3, warmup=0, clock=machine.clock)
    assert "".join(machine.diary) == "abcbcacab"


def test_the_warm_up_does_not_count():
    machine = FakeMachine()
    calls = {"a": machine.call("a", [100.0, 50.0, 1.0, 3.0, 2.0])}
    timing = measure(calls, repeat=3, warmup=2, clock=machine.clock)["a"]
    assert timing.samples == (1.0, 3.0, 2.0)
    assert timing.median == 2.0


def test_each_call_is_charged_its_own_time():
    machine = FakeMachine()
    calls = {"slow": machine.call("s", [8, 8, 8]), "fast": machine.call("f", [1, 2, 4])}
    timings = measure(calls, repeat=3, warmup=0, clock=machine.clock)
    assert timings["slow"].median == 8
    assert timings["fast"].median == 2


@pytest.mark.parametrize(
    ("samples", "median", "quartiles"),
    [
        ((5.0,), 5.0, (5.0, 5.0)),
        ((4.0, 1.0, 3.0, 2.0, 5.0), 3.0, (2.0, 4.0)),
        ((1.0, 2.0, 3.0, 4.0), 2.5, (1.75, 3.25)),
    ],
)
def test_median_and_quartiles(samples, median, quartiles):
    """The usual definition, which interpolates between the two neighbours."""
    timing = Timing(samples)
    assert timing.median == median
    assert timing.quartiles == quartiles


def test_short_calls_are_repeated_within_a_sample():
    """At 0.25 s a call, as the last warm-up round shows, 1 s takes four calls."""
    machine = FakeMachine()
    calls = {"a": machine.call("a", [9.0, 0.25] + [0.25, 0.25, 0.75, 0.75] * 2)}
    timing = measure(calls, repeat=2, warmup=2, min_seconds=1.0, clock=machine.clock)["a"]
    assert timing.calls == 4
    assert timing.samples == (0.5, 0.5)


def test_garbage_is_not_collected_inside_a_round():
    seen = []
    assert gc.isenabled()
    measure({"a": lambda: seen.append(gc.isenabled())}, repeat=1, warmup=1)
    assert seen == [False, False]
    assert gc.isenabled()


def test_a_failing_call_leaves_the_collector_on():
    def fail() -> None:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        measure({"a": fail})
    assert gc.isenabled()


@pytest.mark.parametrize("options", [dict(repeat=0), dict(warmup=-1)])
def test_senseless_numbers_are_refused(options):
    with pytest.raises(ValueError, match="repeat must be at least 1"):
        measure({"a": lambda: None}, **options)
