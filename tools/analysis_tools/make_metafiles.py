"""Write configs/*/metafile.yml: every config and every published weight, in OpenMMLab's format.

Parameters and FLOPs are counted, as in docs/complexity.md; accuracies are those of
docs/data/published_results.yml. mim, mmpretrain and `mmconvnextv2.apis.zoo` read the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from rich.progress import track

from mmconvnextv2.analysis.complexity import Complexity, default_shape, measure_config

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "data"

PAPER = dict(
    Title="ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders",
    URL="https://arxiv.org/abs/2301.00808",
)
COLLECTIONS = {
    "fcmae": ("FCMAE", ["Fully convolutional masked autoencoder", "ConvNeXt V2"]),
    "convnextv2": ("ConvNeXt V2", ["ConvNeXt V2", "Global response normalization"]),
    "mask_rcnn": ("Mask R-CNN with ConvNeXt V2", ["ConvNeXt V2", "FPN", "Mask R-CNN"]),
    "upernet": ("UperNet with ConvNeXt V2", ["ConvNeXt V2", "UperNet"]),
}
"""Name and architecture of the collection of each folder."""

TRAINING_DATA = {
    "_in22k-pre_": ["ImageNet-22k", "ImageNet-1k"],
    "_fcmae-in21k-pre_": ["ImageNet-22k", "ImageNet-1k"],
    "_in22k": "ImageNet-22k",
    "_in1k": "ImageNet-1k",
    "_coco": "COCO",
    "_ade20k": "ADE20K",
    "_sample": "built-in sample set",
    "_folder": "any folder of images",
    "_shards": "any folder of tar shards",
}
"""What a model is trained on, by the first of these that its name contains."""

RECIPE_LICENSE = "Apache-2.0"
NO_COST = {"drop_path_rate", "init_cfg", "loss", "test_cfg", "train_cfg", "with_cp"}
"""Settings of a model that change neither its parameters nor its FLOPs."""

Measure = Callable[[Config], Complexity]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds configs/")
    return parser.parse_args(argv)


def counter() -> Measure:
    """A function that counts a config's model, each structure once.

    FCMAE is charged for its default layout, in which the encoder sees visible cells only.
    """
    known: dict[str, Complexity] = {}

    def measure(cfg: Config) -> Complexity:
        key = json.dumps([_structure(cfg.model.to_dict()), default_shape(cfg)], sort_keys=True)
        if key not in known:
            known[key] = measure_config(cfg)[-1]
        return known[key]

    return measure


def _structure(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _structure(value) for key, value in node.items() if key not in NO_COST}
    return [_structure(item) for item in node] if isinstance(node, list | tuple) else node


def render(
    weights: dict[str, Any], results: dict[str, Any], configs: Path, measure: Measure
) -> dict[str, str]:
    """The text of every metafile, by folder.

    Args:
        weights: contents of published_weights.yml.
        results: contents of published_results.yml.
        configs: folder with the folders of configs.
        measure: counts the model of a config.

    Raises:
        ValueError: a weight names a config or a result that is not there, or a name occurs twice or
            does not tell the training data.
    """
    paths = {
        f"{folder}/{path.name}": path
        for folder in COLLECTIONS
        for path in sorted((configs / folder).glob("*.py"))
    }
    # What can be wrong is found before the counting, which takes a minute.
    entries = [_entry(path.stem, name, RECIPE_LICENSE) for name, path in paths.items()]
    for publisher in weights["publishers"]:
        for weight in publisher["weights"]:
            if weight["config"] not in paths:
                raise ValueError(f"{weight['name']}: there is no config {weight['config']}")
            entry = _entry(weight["name"], weight["config"], publisher["license"])
            entry["Results"] = _results(publisher, weight, results)
            entry["Weights"] = publisher["url"] + weight["file"]
            if "official" in weight:
                official = weights["official"]
                url = official["url"] + weight["official"]
                entry["Converted From"] = dict(Weights=url, Code=official["code"])
            entries.append(entry)
    names = [entry["Name"] for entry in entries]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"names that occur twice: {', '.join(sorted(twice))}")

    counted = {
        f"configs/{name}": measure(Config.fromfile(path))
        for name, path in track(paths.items(), description="counting")
    }
    for entry in entries:
        complexity = counted[entry["Config"]]
        entry["Metadata"] |= {
            "Input Size": "{}x{}".format(*complexity.shape),
            "FLOPs": complexity.flops,
            "Parameters": complexity.parameters,
        }
    return {folder: _text(folder, entries) for folder in COLLECTIONS}


def _entry(name: str, config: str, license_: str) -> dict[str, Any]:
    data = next((data for part, data in TRAINING_DATA.items() if part in name), None)
    if data is None:
        raise ValueError(f"{name}: its name has none of {', '.join(TRAINING_DATA)}")
    return {
        "Name": name,
        "In Collection": COLLECTIONS[config.split("/")[0]][0],
        "Config": f"configs/{config}",
        "Metadata": {"Training Data": data, "License": license_},
        "Results": None,
    }


def _results(
    publisher: dict[str, Any], weight: dict[str, Any], results: dict[str, Any]
) -> list[dict[str, Any]] | None:
    if "of" not in weight:
        return None
    table = next(table for table in results["tables"] if table["title"] == publisher["table"])
    rows = [row["published"] for row in table["rows"] if row["of"] == weight["of"]]
    if len(rows) != 1:
        raise ValueError(f"{weight['name']}: {len(rows)} rows {weight['of']} in {table['title']!r}")
    cells = dict(zip(table["metrics"], rows[0], strict=True))
    return [
        {
            "Task": result["task"],
            "Dataset": result["dataset"],
            "Metrics": {name: cells[column] for name, column in result["metrics"].items()},
        }
        for result in publisher["results"]
    ]


def _text(folder: str, entries: list[dict[str, Any]]) -> str:
    name, architecture = COLLECTIONS[folder]
    models = [entry for entry in entries if entry["In Collection"] == name]
    collection = {
        "Name": name,
        "Metadata": {"Architecture": architecture},
        "Paper": PAPER,
        "README": f"configs/{folder}/README.md",
    }
    # Aliases for repeated nodes are YAML that not every reader of metafiles knows.
    content = json.loads(json.dumps({"Collections": [collection], "Models": models}))
    header = "# Written by tools/analysis_tools/make_metafiles.py; do not edit.\n"
    return header + yaml.safe_dump(content, sort_keys=False, width=1000)


def main(argv: list[str] | None = None) -> int:
    """Count everything, then write all files."""
    args = parse_args(argv)
    configs = args.root / "configs"
    try:
        weights = yaml.safe_load((DATA / "published_weights.yml").read_text(encoding="utf-8"))
        results = yaml.safe_load((DATA / "published_results.yml").read_text(encoding="utf-8"))
        texts = render(weights, results, configs, counter())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for folder, text in texts.items():
        path = configs / folder / "metafile.yml"
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
