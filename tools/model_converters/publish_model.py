"""Publish a checkpoint of a training run: weights and what is needed to use them, nothing else.

Optimizer, schedulers, log history and averaging are left out. The name gets the first eight hex
digits of the file's sha256, as OpenMMLab and torch.hub have it: OUT.pth becomes OUT-1a2b3c4d.pth.
The file holds `state_dict` and `meta`, tensors and plain values alone, so it loads with
`torch.load(..., weights_only=True)`; OUT.safetensors holds the same, its metadata as JSON strings.
Neither needs this package.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mmconvnextv2
from mmconvnextv2.checkpoint import read_checkpoint
from mmconvnextv2.checkpoint.stored_config import read_settings
from mmconvnextv2.files import write_atomically
from mmconvnextv2.nn import ARCHITECTURES

SUFFIXES = (".pth", ".safetensors")
RUN_TIMESTAMP = re.compile(r"_\d{8}_\d{6}$")
DESCRIBED = ("model", "data_preprocessor", "train_dataloader")
"""Variables of a config that tell what a published file says of itself."""

STEM = "downsample_layers.0.0.weight"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="IN", help="checkpoint of a training run")
    parser.add_argument("out", type=Path, metavar="OUT", help="file ending in .pth or .safetensors")
    parser.add_argument(
        "--license",
        required=True,
        metavar="SPDX",
        help="licence of the weights, such as Apache-2.0. What was fine-tuned from the official "
        "weights is under theirs, CC-BY-NC-4.0",
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="keep the averaged weights, which validation used, or those of the last step; has to "
        "be said for a checkpoint that holds both",
    )
    parser.add_argument(
        "--config", type=Path, help="config of the run, for a checkpoint that does not hold it"
    )
    return parser.parse_args(argv)


def read_run(path: Path) -> dict[str, Any]:
    """Read all of a run's checkpoint, tensors and plain containers only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, needs other classes, or is not of OpenMMLab's form.
    """
    read_checkpoint(path)  # says what is wrong with a bad file
    problem = (
        f"{path} is no checkpoint of a training run, with `state_dict` and plain values beside it; "
        f"tools/model_converters/convert.py makes one of other publishers' files"
    )
    if path.suffix == ".safetensors":
        raise ValueError(problem)
    try:
        run = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(problem) from error
    if "state_dict" not in run:
        raise ValueError(problem)
    return run


def choose_weights(run: Mapping[str, Any], ema: bool | None) -> tuple[dict[str, Tensor], str]:
    """Take the averaged weights or those of the last step.

    mmengine exchanges the two when it saves: `state_dict` has the averages and `ema_state_dict`,
    below ``module.``, what the optimizer works on.

    Args:
        run: what the checkpoint holds.
        ema: True for averages, False for the last step's, None where there is no choice.

    Returns:
        The tensors, each with memory of its own, and "averaged" or "last step".

    Raises:
        ValueError: the choice is missing or cannot be had, or a tensor is not finite.
    """
    state = dict(run["state_dict"])
    if "ema_state_dict" in run and ema is None:
        raise ValueError(
            "the checkpoint holds averaged weights and those of the last step: choose with --ema "
            "(averaged, as in the validation of the run) or --no-ema"
        )
    if ema and "ema_state_dict" not in run:
        raise ValueError("--ema: the checkpoint holds no averaged weights")
    if "ema_state_dict" in run and not ema:
        prefix = "module."
        averaging = run["ema_state_dict"]
        last = {k[len(prefix) :]: v for k, v in averaging.items() if k.startswith(prefix)}
        if not last.keys() <= state.keys():
            raise ValueError("--no-ema: the averaged weights are another model's")
        state |= last
    broken = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise ValueError(f"{len(broken)} tensors hold NaN or infinity: {', '.join(broken[:5])}")
    # A view would be saved with all the memory it looks into, and .safetensors refuses it.
    own = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    return own, "averaged" if ema else "last step"


def describe(settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a user of the weights has to know of the config.

    Args:
        settings: the config's `model`, `data_preprocessor` and `train_dataloader`.
        state: the weights, which have to be of the config's architecture.

    Raises:
        ValueError: the config does not tell, or is not that of the weights.
    """
    model = settings.get("model") or {}
    backbone = model.get("backbone") or {}
    preprocessor = model.get("data_preprocessor") or settings.get("data_preprocessor") or {}
    size: Any = _input_size(settings.get("train_dataloader") or {}) or preprocessor.get("size")
    found: dict[str, Any] = {
        "model.backbone.arch": backbone.get("arch"),
        "the mean of the data preprocessor": preprocessor.get("mean"),
        "the std of the data preprocessor": preprocessor.get("std"),
        "a training crop": size,
    }
    missing = [name for name, content in found.items() if content is None]
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}: is it the one of these weights?")
    _check_channels(backbone["arch"], state)
    to_rgb = preprocessor.get("to_rgb") or preprocessor.get("bgr_to_rgb")
    return dict(
        model=model.get("type"),
        arch=backbone["arch"],
        input_size=[size, size] if isinstance(size, int) else list(size),
        mean=list(preprocessor["mean"]),
        std=list(preprocessor["std"]),
        channel_order="RGB" if to_rgb else "BGR",
        pretrained=(backbone.get("init_cfg") or {}).get("checkpoint"),
    )


def _input_size(loader: Mapping[str, Any]) -> Any:
    """Size of the training crop, height and width, or None."""
    dataset = loader.get("dataset") or {}
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    for transform in dataset.get("pipeline") or []:
        for crop, size in (("RandomResizedCrop", "scale"), ("RandomCrop", "crop_size")):
            # With the scope or a prefix of a class that builds on it.
            if transform["type"].endswith(crop):
                return transform.get(size)
    return None


def _check_channels(arch: str | Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    channels = (ARCHITECTURES.get(arch, {}) if isinstance(arch, str) else arch).get("channels")
    stems = [len(tensor) for key, tensor in state.items() if key.endswith(STEM)]
    if channels is None or stems != [channels[0]]:
        raise ValueError(f"the config's arch is {arch!r}, the weights have a stem of {stems}")


def collect_meta(
    run: Mapping[str, Any], state: Mapping[str, Tensor], config: Path | None
) -> dict[str, Any]:
    """Metadata of the published file, all of it plain values.

    Args:
        run: what the checkpoint holds.
        state: the weights to publish.
        config: the config's file, or None for the text in the checkpoint.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: neither has what is needed, or some of it is no plain value.
    """
    meta = run.get("meta") or {}
    if config is not None:
        from mmengine.config import Config

        loaded = Config.fromfile(config)
        name, text, settings = config.stem, loaded.pretty_text, loaded.to_dict()
    elif "cfg" in meta:
        name = RUN_TIMESTAMP.sub("", meta.get("experiment_name", ""))
        text, settings = meta["cfg"], read_settings(meta["cfg"], DESCRIBED)
    else:
        raise ValueError("the checkpoint does not hold its config: give --config")
    versions = dict(mmconvnextv2=mmconvnextv2.__version__, torch=torch.__version__)
    if "mmengine_version" in meta:
        versions["mmengine"] = meta["mmengine_version"]
    collected = dict(
        **describe(settings, state),
        config=name,
        cfg=text,
        versions=versions,
        dataset_meta=meta.get("dataset_meta") or {},
        **{key: meta[key] for key in ("epoch", "iter") if key in meta},
    )
    try:
        return json.loads(json.dumps(collected))
    except TypeError as error:
        raise ValueError(f"the metadata has more than plain values: {error}") from error


def publish(state: dict[str, Tensor], meta: dict[str, Any], out: Path) -> Path:
    """Write the file under a name with its hash, whole or not at all.

    Args:
        state: the weights.
        meta: plain values.
        out: where to, without the hash, with one of `SUFFIXES`.

    Returns:
        The path of the file.

    Raises:
        OSError: the file cannot be written.
        ImportError: safetensors is asked for and not installed.
    """
    data = _to_safetensors(state, meta) if out.suffix == ".safetensors" else _to_pth(state, meta)
    digest = hashlib.sha256(data).hexdigest()[:8]
    return write_atomically(out.with_name(f"{out.stem}-{digest}{out.suffix}"), data)


def _to_pth(state: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    # Into memory, since torch writes a path's own name into the file.
    buffer = io.BytesIO()
    torch.save(dict(state_dict=state, meta=meta), buffer)
    return buffer.getvalue()


def _to_safetensors(state: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    strings = {k: v if isinstance(v, str) else json.dumps(v) for k, v in meta.items()}
    data = save(state, metadata={"format": "pt", **strings})
    # Its metadata comes in random order. Sorted, the same weights always have the same hash.
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(text) <= length
    return b"".join((data[:8], text.ljust(length), memoryview(data)[8 + length :]))


def main(argv: list[str] | None = None) -> int:
    """Publish; one line and exit status 2 for what the user can put right."""
    args = parse_args(argv)
    try:
        if args.out.suffix not in SUFFIXES:
            raise ValueError(f"{args.out} has to end in {' or '.join(SUFFIXES)}")
        run = read_run(args.checkpoint)
        state, weights = choose_weights(run, args.ema)
        meta = collect_meta(run, state, args.config) | dict(license=args.license, weights=weights)
        path = publish(state, meta, args.out)
    except (ValueError, OSError, ImportError) as error:
        print(f"publish_model.py: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {len(state)} tensors, {weights}, {args.license}")
    if meta["pretrained"]:
        print(f"the run started from {meta['pretrained']}: does its licence allow {args.license}?")
    return 0


if __name__ == "__main__":
    sys.exit(main())
