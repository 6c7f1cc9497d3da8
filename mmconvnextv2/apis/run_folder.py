"""Where a run begins, given what its work_dir holds: nothing is lost without being asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmconvnextv2.checkpoint.validity import (
    CheckpointError,
    check_checkpoint,
    newest_valid_checkpoint,
    read_progress,
    run_checkpoints,
)

Resume = bool | str | os.PathLike[str]
"""False: start anew. True: go on from the newest checkpoint, if there is one. A path: from that."""

_FAILED_START = re.compile(r"config\.py|initial_weights\.pth|normalization\.json|\d{8}_\d{6}")
"""Names of what a run writes before its first step."""


class WorkDirError(ValueError):
    """A work_dir whose content does not go with what is asked for."""


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: what it resumes from; None for a fresh start.
        obsolete: files to delete as soon as it has started, since a later resume would take them
            for its own.
        notes: lines for the log.
    """

    checkpoint: Path | None
    obsolete: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def refuse_earlier_run(
    work_dir: str | os.PathLike[str], resume: Resume = False, overwrite: bool = False
) -> None:
    """Refuse a fresh start in a folder that holds a run, unless it is to be replaced.

    Args:
        work_dir: folder of the coming run.
        resume: anything but False goes on with a run.
        overwrite: replace what is there.

    Raises:
        WorkDirError: the folder has checkpoints, or logged figures, of a run.
    """
    if resume is not False or overwrite:
        return
    traces = [*_files_of_run(work_dir), *_logged_figures(work_dir)]
    if traces:
        raise WorkDirError(
            f"{work_dir} holds a run already ({traces[0].relative_to(work_dir)}): --resume goes on "
            "with it, --overwrite replaces it, another --work-dir leaves it alone (in Python: "
            "resume=True, overwrite=True, work_dir)"
        )


def refuse_occupied_folder(
    out: str | os.PathLike[str], resume: Resume = False, overwrite: bool = False
) -> None:
    """Refuse a folder in which a new run would lie among files that are not its own.

    What a start leaves that has failed before its first step is no such file.

    Args:
        out: folder of the coming run.
        resume: anything but False goes on with a run.
        overwrite: replace a run that is there; files of other kinds stay.

    Raises:
        NotADirectoryError: it is a file.
        WorkDirError: it holds anything, and neither `resume` nor `overwrite` is given.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{out} is a file; give the folder for the run (--out)")
    if resume is not False or overwrite or not folder.is_dir():
        return
    figures = {file.relative_to(folder).parts[0] for file in _logged_figures(folder)}
    others = [
        entry.name
        for entry in sorted(folder.iterdir())
        if entry.name in figures or not _FAILED_START.fullmatch(entry.name)
    ]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise WorkDirError(
            f"{out} is not empty ({others[0]}{more}): --resume goes on with a run there, "
            "--overwrite replaces it, another --out leaves it alone"
        )


def choose_start(
    work_dir: str | os.PathLike[str], resume: Resume = False, overwrite: bool = False
) -> Start:
    """Decide where a run begins. Nothing is changed.

    Args:
        work_dir: folder of the coming run.
        resume: whether to go on, and from which file.
        overwrite: a fresh start may replace the run in the folder, and one from a named file those
            checkpoints that lie ahead of it.

    Raises:
        FileNotFoundError: the named checkpoint is not there.
        CheckpointError: it, or every one of the folder, cannot be resumed from.
        WorkDirError: the folder holds a run, and the start is fresh or from an older checkpoint,
            without `overwrite`; or `overwrite` stands beside ``resume=True``.
    """
    refuse_earlier_run(work_dir, resume, overwrite)
    if resume is False:
        return Start(None, obsolete=tuple(_files_of_run(work_dir)))
    if resume is not True:
        return _start_from(Path(resume), work_dir, overwrite)
    if overwrite:
        raise WorkDirError(
            "--resume goes on with a run and --overwrite replaces it: give one of them, or name "
            "the checkpoint to go back to (--resume FILE --overwrite)"
        )
    notes: list[str] = []
    newest = newest_valid_checkpoint(work_dir, notes.append)
    if newest is None:
        notes.append(f"{work_dir} has no checkpoint to resume from: the run starts anew")
    return Start(newest, notes=tuple(notes))


def _start_from(checkpoint: Path, work_dir: str | os.PathLike[str], overwrite: bool) -> Start:
    iteration = check_checkpoint(checkpoint).iteration
    ahead = list(_ahead(checkpoint, iteration, run_checkpoints(work_dir)))
    if ahead and not overwrite:
        raise WorkDirError(
            f"the next --resume would go on from {ahead[0]}, not from what follows {checkpoint}: "
            "--overwrite deletes it, another --work-dir leaves it alone"
        )
    return Start(checkpoint, obsolete=tuple(ahead))


def _ahead(checkpoint: Path, iteration: int, others: Iterable[Path]) -> Iterable[Path]:
    """Valid checkpoints of a folder that a run from `checkpoint` has not passed yet."""
    for other in others:
        try:
            progress = read_progress(other)
        except (CheckpointError, OSError):  # resuming leaves it aside as well
            continue
        same_run = other.parent.samefile(checkpoint.parent)
        if progress.iteration > iteration or not same_run:
            yield other


def _files_of_run(work_dir: str | os.PathLike[str]) -> list[Path]:
    """What a fresh start has to replace: checkpoints, and mmengine's pointer to the last."""
    folder = Path(work_dir)
    pointer = folder / "last_checkpoint"
    best = sorted((*folder.glob("best_*_epoch_*.pth"), *folder.glob("best_*_iter_*.pth")))
    return [*run_checkpoints(folder), *best, *([pointer] if pointer.is_file() else [])]


def _logged_figures(work_dir: str | os.PathLike[str]) -> list[Path]:
    """Logs of runs that got as far as a first figure.

    mmengine writes config.py and begins TensorBoard's file before.
    """
    files = (path for path in Path(work_dir).glob("*/vis_data/*") if path.is_file())
    begun = ("config.py", "events.out.tfevents.")
    return [file for file in files if not file.name.startswith(begun)]


class RemoveObsoleteHook(Hook):
    """Delete the files of an earlier run when the new one has loaded all that it starts from.

    Args:
        paths: the files.
    """

    # Before any hook that writes a checkpoint, which may have one of these names.
    priority = "VERY_HIGH"

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(paths)

    def before_train(self, runner: Runner) -> None:
        """Delete.

        Args:
            runner: the runner of the training process.
        """
        barrier()  # every process has loaded
        if is_main_process():
            for path in self.paths:
                path.unlink(missing_ok=True)
                runner.logger.info(f"deleted {path}, of the earlier run")
        barrier()
