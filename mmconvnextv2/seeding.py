"""Stateless randomness: seeds derived from what is drawn for, never from what was drawn before."""

from __future__ import annotations

import enum
import hashlib
import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class Stream(enum.IntEnum):
    """The independent users of randomness.

    A stream stands among the parts of every derived seed, so that equal numbers with different
    meanings (image 5 of epoch 0, step 5 on rank 0) do not share a seed.
    """

    ORDER = 0
    SAMPLE = 1
    STEP = 2


def derive_seed(*parts: int) -> int:
    """Mix integers into one seed. A pure function: no global state is read or written.

    Args:
        *parts: At least one integer of any size and sign. Order and number matter.

    Returns:
        A seed in [0, 2**63). Parts that differ in one bit give unrelated seeds.

    Raises:
        TypeError: A part is not an integer.
        ValueError: No part is given.
    """
    if not parts:
        raise ValueError("derive_seed needs at least one integer")
    text = ",".join(str(operator.index(part)) for part in parts)
    digest = hashlib.blake2b(text.encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (CPU and every accelerator).

    Args:
        seed: A seed in [0, 2**63), as `derive_seed` returns it.
    """
    _seed_python_and_numpy(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded_cpu(seed: int) -> Iterator[None]:
    """Seed the global CPU generators for the length of a `with` block, then put them back.

    Python, NumPy and torch's CPU generator are covered. Generators of accelerators are left
    alone, because saving and restoring them would wait for the device.

    Args:
        seed: A seed in [0, 2**63), as `derive_seed` returns it.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.default_generator.get_state()
    _seed_python_and_numpy(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.default_generator.set_state(torch_state)


def _seed_python_and_numpy(seed: int) -> None:
    random.seed(seed)
    # NumPy's legacy generator takes 32-bit words: two of them keep all the bits of the seed.
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
