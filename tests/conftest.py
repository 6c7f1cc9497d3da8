"""Fixtures every test may use: fixed seeds, a narrow architecture, error norms, awake GRN.

Tests of faults also use the fixture `soak_count` and the markers `fault` and `soak`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch counts the cores: processes that test side by side share them.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

# importlib mode leaves the tests' own folder off the path, and the reference is shared by folders.
TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

SOAKING = os.environ.get("MMCONVNEXTV2_SOAK") == "1"
"""Whether this is `make soak`, which tries everything more often."""

# A busy machine is no fault of a test. `make test` tries the same cases every time; `make soak`
# draws new ones, and prints with a failure what repeats it.
settings.register_profile(
    "test",
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "soak", settings.get_profile("test"), max_examples=10_000, derandomize=False, print_blob=True
)
settings.load_profile("soak" if SOAKING else "test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the row of `@pytest.mark.fault` into the report, from which tools/soak.py reads it."""
    for item in items:
        if mark := item.get_closest_marker("fault"):
            test = f"{item.path.relative_to(TESTS)}::{item.originalname}"
            row = zip(("promise", "tried", "outcome", "test"), (*mark.args, test), strict=True)
            item.user_properties += [(name, str(value)) for name, value in row]


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Report how many cases hypothesis has tried."""
    if statistics := getattr(item, "hypothesis_statistics", None):
        counts = re.findall(r"(\d+) passing", statistics)
        assert counts, f"hypothesis no longer says how many cases it tried: {statistics}"
        item.user_properties.append(("times", str(sum(map(int, counts)))))


@pytest.fixture
def soak_count(record_property: Callable[[str, object], None]) -> Callable[[int, int], int]:
    """How often to repeat: `soak_count(20, 100)` is 20 in `make test` and 100 in `make soak`.

    The table in docs/reliability.md takes the number over.
    """

    def choose(short: int, long: int) -> int:
        times = long if SOAKING else short
        record_property("times", times)
        return times

    return choose


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Start every test from the same random state, and leave none behind."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def no_default_scope() -> Iterator[None]:
    """A Runner leaves its scope behind as the current one; the next test starts without."""
    yield
    if "mmengine" in sys.modules:
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()


@pytest.fixture
def tiny_arch() -> dict[str, list[int]]:
    """A ConvNeXt V2 narrow enough for the loops of the reference."""
    return dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])


@pytest.fixture
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """||actual - expected|| / ||expected|| in float64; the absolute norm where expected is 0."""

    def measure(actual: Tensor, expected: Tensor) -> float:
        assert actual.shape == expected.shape, f"{tuple(actual.shape)} {tuple(expected.shape)}"
        actual, expected = actual.detach().double(), expected.detach().double()
        assert torch.isfinite(actual).all() and torch.isfinite(expected).all()
        scale = expected.norm().item()
        return (actual - expected).norm().item() / (scale if scale > 0 else 1.0)

    return measure


@pytest.fixture
def randomize_grn() -> Callable[[nn.Module], nn.Module]:
    """Give every GRN random parameters; at their initial 0 GRN is the identity and hides bugs.

    Norms and biases, which also start at 0 or 1, are moved as well.
    """

    def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                if ".grn." in f".{name}" or name in ("gamma", "beta"):
                    parameter.copy_(0.5 * noise)
                elif name.endswith("bias"):
                    parameter.copy_(0.1 * noise)
                elif parameter.ndim == 1:
                    parameter.copy_(1 + 0.1 * noise)
                elif parameter.ndim > 1:
                    # std .02 leaves branches of a narrow net near 0: scale to keep the variance.
                    fan_in = parameter[0].numel() if "mask_token" not in name else 1
                    parameter.copy_(noise / fan_in**0.5)
        return module

    return randomize


@pytest.fixture
def random_mask() -> Callable[..., Tensor]:
    """A mask (N, H/32, W/32) with a stated number of visible cells for each sample."""

    def draw(visible: list[int], grid_hw: tuple[int, int], seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        cells = grid_hw[0] * grid_hw[1]
        mask_NL = torch.ones(len(visible), cells, dtype=torch.bool)
        for n, keep in enumerate(visible):
            mask_NL[n, torch.randperm(cells, generator=generator)[:keep]] = False
        return mask_NL.view(len(visible), *grid_hw)

    return draw
