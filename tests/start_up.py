"""Measure start-up and memory with as many made-up images as ImageNet-22K has; prints JSON.

A process of its own: what the test runner holds would be in the figures.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sized

import numpy as np

from mmconvnextv2.datasets.path_list import PathList
from mmconvnextv2.datasets.samplers import StatelessSampler
from mmconvnextv2.datasets.shard_index import SAMPLE, Shards, save_index, write_manifest

NUM_FOLDERS, NUM_SHARDS, NUM_IMAGES = 21_841, 1_420, 14_200_000


def megabytes(file: str, *keys: str) -> float:
    with open(file) as text:
        lines = dict(line.split(":") for line in text if line.count(":") == 1)
    return sum(int(lines[key].split()[0]) for key in keys) / 1000


def resident() -> float:
    return megabytes("/proc/self/status", "VmRSS")


def added_by_a_worker(read: Callable[[int], object], count: int = 100_000) -> float:
    """Memory that a forked process does not share any more after random reads."""
    receive, send = os.pipe()
    if os.fork() == 0:
        draws = random.Random(0)
        for _ in range(count):
            read(draws.randrange(NUM_IMAGES))
        private = megabytes("/proc/self/smaps_rollup", "Private_Dirty", "Private_Clean")
        os.write(send, str(private).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        return float(pipe.read())


def measure(build: Callable[[], Sized], read: Callable[[Sized, int], object]) -> dict[str, float]:
    idle = added_by_a_worker(lambda index: None)
    before, start = resident(), time.perf_counter()
    held = build()
    assert len(held) == NUM_IMAGES
    seconds, after = time.perf_counter() - start, resident()
    worker = added_by_a_worker(lambda index: read(held, index)) - idle
    return dict(seconds=seconds, megabytes=after - before, worker=worker)


def names() -> Iterator[str]:
    for number in range(NUM_IMAGES):
        folder = number * NUM_FOLDERS // NUM_IMAGES
        yield f"/data/imagenet22k/n{folder:08d}/n{folder:08d}_{number % 651:05d}.JPEG"


def make_shards(folder: str) -> None:
    count = NUM_IMAGES // NUM_SHARDS
    samples = np.zeros(count, SAMPLE)
    samples["size"] = 110_000
    samples["offset"] = 512 + np.arange(count) * 111_104
    for number in range(NUM_SHARDS):
        shard = os.path.join(folder, f"shard-{number:06d}.tar")
        with open(shard, "wb") as file:
            file.truncate(count * 111_104 + 10_240)  # a hole: it takes no space
        save_index(shard, samples)
    write_manifest(folder)


def main() -> None:
    folder = sys.argv[1]
    make_shards(folder)
    figures = dict(
        shards=measure(lambda: Shards(folder), lambda shards, index: shards[index]),
        folder=measure(lambda: PathList(names()), lambda paths, index: paths[index]),
    )
    sampler = StatelessSampler(range(NUM_IMAGES), seed=0)
    before, start = resident(), time.perf_counter()
    indices = iter(sampler)
    next(indices)
    figures["order"] = dict(seconds=time.perf_counter() - start, megabytes=resident() - before)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
