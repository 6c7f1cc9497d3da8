"""Measure the normalisation of a folder of images: per channel, streaming, robust to outliers.

Shape suffixes: P pixels, C channels.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import track

from mmconvnextv2.datasets.image_folder import BadImagesError, allowed_bad
from mmconvnextv2.datasets.image_reading import UnreadableImageError
from mmconvnextv2.datasets.image_scan import (
    describe_bad,
    describe_mixture,
    find_bad_headers,
    resolve_folder,
    scan_folder,
)
from mmconvnextv2.datasets.raster_reading import (
    RASTER_SUFFIXES,
    RasterHeader,
    read_raster_float,
    read_raster_header,
)
from mmconvnextv2.files import write_atomically
from mmconvnextv2.nn.missing import Missing

MAX_SAMPLED = 4_000_000
"""Pixels that the percentiles are measured on, at most; below, they are exact."""

MAX_BAD_SHARE = 0.01
"""Share of unreadable files that is left out, as `ImageFolder` does by default."""


@dataclass(frozen=True)
class Normalization:
    """What was measured, in the images' own units and order of channels.

    Attributes:
        mean: Mean of each channel after clipping.
        std: Standard deviation of each channel after clipping (of the population).
        low: Lower clipping bound of each channel.
        high: Upper clipping bound of each channel.
        num_images: Number of images measured.
        dtype: Number type of the files.
        percentiles: The two percentiles that the bounds are.
        missing_share: Share of missing values of each channel.
    """

    mean: list[float]
    std: list[float]
    low: list[float]
    high: list[float]
    num_images: int
    dtype: str
    percentiles: list[float]
    missing_share: list[float]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the numbers as JSON, atomically, and return the path."""
        return write_atomically(path, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Normalization:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not JSON, or a number is missing.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{os.fspath(path)} is no normalisation file ({error!r}); "
                "tools/dataset_converters/measure_normalization.py writes one"
            ) from error


def measure_normalization(
    images: str | os.PathLike[str] | Sequence[str],
    *,
    percentiles: tuple[float, float] = (0.1, 99.9),
    missing: Missing = "refuse",
    no_data: float | None = None,
    constant: Literal["refuse", "keep"] = "refuse",
    max_sampled: int = MAX_SAMPLED,
    num_threads: int = 4,
    progress: bool = False,
) -> Normalization:
    """Measure mean, deviation and clipping bounds of every channel, over all images.

    The images are read twice. The bounds are percentiles, of every pixel or of `max_sampled`
    that are drawn with a fixed seed; mean and deviation are those of every pixel, clipped to the
    bounds, in float64. A single hot pixel so changes nothing. Memory does not grow with the
    number of images.

    Args:
        images: A folder, searched with all folders below it, or the paths of files.
        percentiles: The lower and the upper one, 0 to 100; (0, 100) clips nothing. Where rare
            values matter, such as bright spots on a dark ground, widen them.
        missing: "refuse" or "ignore" missing values; see `read_raster_float`.
        no_data: The number that stands for a missing value.
        constant: "refuse" raises an error on a channel whose bounds are equal; "keep" gives it
            the deviation 1, so that it is 0 everywhere after normalisation.
        max_sampled: Pixels for the percentiles, at most.
        num_threads: Files to read at a time.
        progress: Show bars on a terminal.

    Returns:
        The numbers for `FCMAEDataPreprocessor` and `NormalizeChannels`.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: There is no image; the images differ in the number of channels or the number
            type; a channel is constant or wholly missing; an argument is outside what is allowed.
        BadImagesError: More than 1 % of the files cannot be read.
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"percentiles must rise within 0 to 100, got {percentiles}")
    if constant not in ("refuse", "keep"):
        raise ValueError(f"constant must be 'refuse' or 'keep', got {constant!r}")
    paths, headers, bad = _read_headers(images)
    reader = _Reader(missing, no_data, num_threads, progress, bad, len(paths))

    total = sum(header.height * header.width for header in headers.values())
    share = min(1.0, max_sampled / total)
    numbers = {path: number for number, path in enumerate(paths)}
    sample_PC = np.concatenate(
        list(reader.run(paths, "bounds", lambda path, x_PC: _draw(x_PC, share, numbers[path])))
    )
    low_C, high_C = _bounds(sample_PC, percentiles)
    del sample_PC
    if bad:
        print_log(f"left out:\n{describe_bad(bad)}", "current", logging.WARNING)

    readable = [path for path in paths if path not in bad]
    clipped = reader.run(
        readable, "mean and deviation", lambda _, x_PC: _Moments.of(x_PC.clip(low_C, high_C))
    )
    moments = reduce(_Moments.merge, clipped)
    std_C = np.sqrt(moments.squares_C / moments.count_C)
    flat_C = low_C == high_C
    if flat_C.any() and constant == "refuse":
        raise ValueError(_describe_constant(flat_C, low_C, percentiles))
    return Normalization(
        mean=moments.mean_C.tolist(),
        std=np.where(flat_C, 1.0, std_C).tolist(),
        low=low_C.tolist(),
        high=high_C.tolist(),
        num_images=len(readable),
        dtype=next(iter(headers.values())).dtype,
        percentiles=list(percentiles),
        missing_share=(1 - moments.count_C / moments.total).tolist(),
    )


def _read_headers(
    images: str | os.PathLike[str] | Sequence[str],
) -> tuple[list[str], dict[str, RasterHeader], dict[str, str]]:
    """List the images and check that all announce the same channels and numbers."""
    if isinstance(images, (str, os.PathLike)):
        paths: Sequence[str] = scan_folder(resolve_folder(images), RASTER_SUFFIXES).images
    else:
        paths = list(images)
        if not paths:
            raise ValueError("there is no image to measure: the list is empty")
    headers: dict[str, RasterHeader] = {}

    def check(path: str) -> None:
        headers[path] = read_raster_header(path)

    bad = find_bad_headers(paths, check)
    _refuse_if_too_many(bad, len(paths))
    for what, kinds in (
        ("numbers of channels", {path: f"x {h.channels}" for path, h in headers.items()}),
        ("number types", {path: h.dtype for path, h in headers.items()}),
    ):
        if len(set(kinds.values())) > 1:
            raise ValueError(
                f"the images have different {what}: {describe_mixture(kinds)}. Convert them, or "
                "keep them in folders of their own"
            )
    return [path for path in paths if path in headers], headers, bad


@dataclass
class _Reader:
    """Reads images in threads, hands results on in order, and leaves out what is broken."""

    missing: Missing
    no_data: float | None
    num_threads: int
    progress: bool
    bad: dict[str, str]
    num_files: int

    def run(
        self, paths: Sequence[str], text: str, use: Callable[[str, np.ndarray], Any]
    ) -> Iterator[Any]:
        """Yield `use(path, x_PC)` for every path whose file can be read."""

        def read(path: str) -> Any:
            try:
                x_HWC = read_raster_float(path, self.missing, self.no_data)
            except UnreadableImageError as error:
                return error
            return use(path, x_HWC.reshape(-1, x_HWC.shape[-1]))

        console = Console(stderr=True)
        shown = self.progress and console.is_terminal
        with ThreadPoolExecutor(self.num_threads) as pool:
            results = pool.map(read, paths)
            for result in track(results, text, len(paths), console=console, disable=not shown):
                if isinstance(result, UnreadableImageError):
                    self.bad[result.path] = result.reason
                    _refuse_if_too_many(self.bad, self.num_files)
                else:
                    yield result


def _refuse_if_too_many(bad: dict[str, str], num_files: int) -> None:
    allowed = allowed_bad(MAX_BAD_SHARE, num_files)
    if len(bad) > allowed or len(bad) == num_files:
        raise BadImagesError(
            f"unreadable images: {len(bad):,} of {num_files:,}, {allowed:,} allowed. Repair or "
            f"remove them:\n{describe_bad(bad)}"
        )


def _draw(x_PC: np.ndarray, share: float, number: int) -> np.ndarray:
    """Draw a share of the pixels of the image with some number, by a seed of its own."""
    if share == 1.0:
        return x_PC
    count = max(1, round(share * len(x_PC)))
    chosen = np.random.default_rng((0, number)).integers(0, len(x_PC), count)
    return x_PC[chosen]


def _bounds(
    sample_PC: np.ndarray, percentiles: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    bounds: list[np.ndarray] = []
    for channel in range(sample_PC.shape[1]):
        values_P = sample_PC[:, channel].astype(np.float64)
        known_P = values_P[~np.isnan(values_P)]
        if len(known_P) == 0:
            raise ValueError(f"channel {channel} (from 0) has no known value: leave it out")
        bounds.append(np.percentile(known_P, percentiles))
    bounds_C2 = np.array(bounds)
    return bounds_C2[:, 0], bounds_C2[:, 1]


@dataclass(frozen=True)
class _Moments:
    """Number, mean and summed squared deviations of the known values of each channel."""

    count_C: np.ndarray
    mean_C: np.ndarray
    squares_C: np.ndarray
    total: int

    @classmethod
    def of(cls, x_PC: np.ndarray) -> _Moments:
        x_PC = x_PC.astype(np.float64)
        known_PC = ~np.isnan(x_PC)
        count_C = known_PC.sum(axis=0)
        mean_C = np.where(known_PC, x_PC, 0.0).sum(axis=0) / np.maximum(count_C, 1)
        squares_C = np.square(np.where(known_PC, x_PC - mean_C, 0.0)).sum(axis=0)
        return cls(count_C, mean_C, squares_C, len(x_PC))

    def merge(self, other: _Moments) -> _Moments:
        """Chan, Golub and LeVeque's update, exact for any sizes."""
        count_C = self.count_C + other.count_C
        share_C = other.count_C / np.maximum(count_C, 1)
        step_C = other.mean_C - self.mean_C
        return _Moments(
            count_C,
            self.mean_C + step_C * share_C,
            self.squares_C + other.squares_C + step_C**2 * self.count_C * share_C,
            self.total + other.total,
        )


def _describe_constant(
    flat_C: np.ndarray, low_C: np.ndarray, percentiles: tuple[float, float]
) -> str:
    channels = ", ".join(f"{c} (value {low_C[c]:g})" for c in np.flatnonzero(flat_C))
    return (
        f"constant between the percentiles {percentiles[0]:g} and {percentiles[1]:g}: channel "
        f"{channels}, counted from 0. Leave it out; or widen the percentiles if its rare values "
        "matter; or choose constant='keep' to take 1 for its deviation"
    )
