"""Test a checkpoint with the test set and the metrics of a config, whatever its task."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import Config

from mmconvnextv2.apis.launch import (
    USER_ERRORS,
    add_launch_arguments,
    build_runner,
    join_processes,
    leave_processes,
    load_config,
)
from mmconvnextv2.datasets.annotation_checks import blame_annotations


def parse_args() -> argparse.Namespace:
    """Arguments of the command line, named as in OpenMMLab's own scripts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file with a test_dataloader and a test_evaluator")
    parser.add_argument("checkpoint", help="checkpoint file; it has to fit the model exactly")
    parser.add_argument("--out", metavar="FILE.pkl", help="write all predictions to this file")
    parser.add_argument("--show-dir", metavar="DIR", help="write pictures of the predictions there")
    parser.add_argument(
        "--tta", action="store_true", help="average over the config's scales and flips"
    )
    add_launch_arguments(parser)
    return parser.parse_args()


def write_predictions(cfg: Config, out: str) -> None:
    """Add the evaluator that pickles every prediction.

    Raises:
        ValueError: if the file's name does not end in .pkl or .pickle.
    """
    if Path(out).suffix not in (".pkl", ".pickle"):
        raise ValueError(f"--out {out!r}: the name has to end in .pkl or .pickle")
    own = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    cfg.test_evaluator = [*own, dict(type="DumpResults", out_file_path=out)]


def write_pictures(cfg: Config, show_dir: str) -> None:
    """Switch on the drawing hook of the config's task, with a directory of the caller's choice.

    Raises:
        ValueError: if the config has no drawing hook that is known here.
    """
    directory = str(Path(show_dir).resolve())
    hook = (cfg.get("default_hooks") or {}).get("visualization") or {}
    kind = hook.get("type", "none")
    name = kind.split(".")[-1] if isinstance(kind, str) else kind.__name__
    if name == "VisualizationHook":  # mmpretrain
        hook.update(enable=True, out_dir=directory)
    elif name == "DetVisualizationHook":
        hook.update(draw=True, test_out_dir=directory)
    elif name == "SegVisualizationHook":
        hook.update(draw=True)
        cfg.visualizer.save_dir = directory
    else:
        raise ValueError(
            f"--show-dir needs default_hooks.visualization to be mmpretrain's, mmdet's or mmseg's "
            f"visualization hook, and the config has {name}"
        )


def use_tta(cfg: Config) -> None:
    """Test with the config's test-time augmentation.

    Raises:
        ValueError: if the config describes none.
    """
    if cfg.get("tta_model") is None or cfg.get("tta_pipeline") is None:
        raise ValueError("--tta: the config has no tta_model and tta_pipeline")
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)


def prepare(args: argparse.Namespace) -> tuple[Config, list[str]]:
    """Config for a test run, and lines for its log.

    Raises:
        FileNotFoundError: if the config or the checkpoint is not a file.
        ValueError: if the config says nothing about testing, or an option does not fit it.
    """
    cfg = load_config(args)
    if not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f"checkpoint {args.checkpoint!r} is not a file")
    if cfg.get("test_dataloader") is None or cfg.get("test_evaluator") is None:
        raise ValueError(f"{args.config} lacks test_dataloader or test_evaluator: nothing to test")
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.tta:
        use_tta(cfg)
    if args.out:
        write_predictions(cfg, args.out)
    if args.show_dir:
        write_pictures(cfg, args.show_dir)
    return cfg, join_processes(cfg, args.launcher)


def main() -> int:
    """Exit status: 0 after the test, 2 when the arguments or the config do not allow it."""
    args = parse_args()
    try:
        cfg, notes = prepare(args)
    except (ValueError, *USER_ERRORS) as error:
        print(f"test.py: {error}", file=sys.stderr)
        return 2
    try:
        runner = build_runner(cfg, notes)
        with blame_annotations(cfg.test_dataloader):
            runner.test()
    except USER_ERRORS as error:
        print(f"test.py: {error}", file=sys.stderr)
        return 2
    leave_processes()
    return 0


if __name__ == "__main__":
    sys.exit(main())
