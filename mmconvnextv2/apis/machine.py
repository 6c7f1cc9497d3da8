"""What the machine offers a run: device, precision, processes."""

from __future__ import annotations

import os

import torch

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bf16", "fp32")
MOST_WORKERS = 8


def choose_device(device: str | torch.device) -> torch.device:
    """The device to compute on.

    Args:
        device: "auto" for a GPU where there is one, else the CPU; "cpu"; "cuda"; or any that torch
            knows, such as "cuda:1".

    Raises:
        ValueError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device} was asked for, but torch finds no CUDA device; use cpu or auto"
        )
    return chosen


def choose_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16.

    Args:
        precision: "auto" for bfloat16 on a GPU that computes it in hardware (compute capability 8
            or higher), else float32; "bf16"; or "fp32".
        device: where the run computes.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    return precision == "bf16"


def choose_workers(num_workers: int | None) -> int:
    """Processes that read images: as many as the process may use cores, at most eight."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0))) if num_workers is None else num_workers
