"""Where a run begins: nothing is lost, and nothing restarted, without being asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmconvnextv2.apis.run_folder import (
    Start,
    WorkDirError,
    choose_start,
    refuse_earlier_run,
    refuse_occupied_folder,
)
from mmconvnextv2.checkpoint.validity import CheckpointError

pytestmark = pytest.mark.unit

FAILED_START = (
    "20260101_000000/20260101_000000.log",
    "20260101_000000/vis_data/config.py",
    "20260101_000000/vis_data/events.out.tfevents.1.host.2.0",
    "config.py",
    "normalization.json",
)


def save(path: Path, iteration: int) -> Path:
    """A checkpoint as mmengine writes it."""
    path.parent.mkdir(exist_ok=True)
    state = dict(weight=torch.zeros(2))
    meta = dict(epoch=iteration // 10, iter=iteration)
    torch.save(dict(meta=meta, state_dict=state, message_hub={}, optimizer={}), path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with two checkpoints, the best one, and the pointer."""
    folder = tmp_path / "run"
    for epoch in (1, 2):
        save(folder / f"epoch_{epoch}.pth", 10 * epoch)
    (folder / "best_top1_epoch_1.pth").touch()
    (folder / "last_checkpoint").write_text(str(folder / "epoch_2.pth"))
    (folder / "initial_weights.pth").touch()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.fault(3, "a fresh start in the folder of a run", "refused, the run as it was")
def test_a_fresh_start_over_a_run_is_refused(run: Path) -> None:
    before = contents(run)
    with pytest.raises(WorkDirError, match=r"epoch_2.pth.*--resume goes on.*--overwrite replaces"):
        choose_start(run)
    assert contents(run) == before


@pytest.mark.parametrize("trace", ["best_a_iter_5.pth", "last_checkpoint", "1/vis_data/1.json"])
def test_any_trace_of_a_run_counts(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / trace).touch()
    with pytest.raises(WorkDirError, match=trace):
        refuse_earlier_run(tmp_path)
    refuse_earlier_run(tmp_path, resume=True)
    refuse_earlier_run(tmp_path, overwrite=True)


def test_a_start_that_failed_before_its_first_figure_may_be_repeated(tmp_path: Path) -> None:
    for name in FAILED_START:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert choose_start(tmp_path) == Start(None)
    assert choose_start(tmp_path / "nowhere") == Start(None)
    refuse_occupied_folder(tmp_path)
    refuse_occupied_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["holiday.jpg", "20260101_000000/vis_data/scalars.json", "1/a"])
def test_a_folder_in_use_is_refused_as_a_new_run_s(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(WorkDirError, match=rf"not empty \({name.split('/')[0]}\).*--overwrite"):
        refuse_occupied_folder(tmp_path)
    refuse_occupied_folder(tmp_path, resume=True)
    refuse_occupied_folder(tmp_path, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        refuse_occupied_folder(tmp_path / "file", resume=True)


def test_overwriting_names_the_run_s_files_and_no_others(run: Path) -> None:
    before = contents(run)
    start = choose_start(run, overwrite=True)
    assert start.checkpoint is None
    assert sorted(path.name for path in start.obsolete) == sorted(
        set(before) - {"initial_weights.pth"}
    )
    assert contents(run) == before, "they go when the new run has begun"


def test_resuming_takes_the_newest_valid_file_and_says_what_it_leaves(run: Path) -> None:
    assert choose_start(run, resume=True) == Start(run / "epoch_2.pth")
    (run / "epoch_2.pth").write_bytes(b"")
    start = choose_start(run, resume=True)
    assert (start.checkpoint, start.obsolete) == (run / "epoch_1.pth", ())
    (line,) = start.notes
    assert "epoch_2.pth is damaged" in line
    (run / "epoch_1.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"epoch_2.pth is damaged.*epoch_1.pth is damaged"):
        choose_start(run, resume=True)


def test_resuming_a_run_that_has_not_saved_begins_it_and_says_so(tmp_path: Path) -> None:
    """The same command line starts a job and brings it back."""
    start = choose_start(tmp_path, resume=True)
    assert start.checkpoint is None and start.obsolete == ()
    assert "no checkpoint to resume from: the run starts anew" in start.notes[0]


def test_resuming_and_overwriting_exclude_each_other(run: Path) -> None:
    with pytest.raises(WorkDirError, match="give one of them"):
        choose_start(run, resume=True, overwrite=True)


def test_a_named_file_must_be_there_and_whole(run: Path) -> None:
    assert choose_start(run, resume=str(run / "epoch_2.pth")) == Start(run / "epoch_2.pth")
    with pytest.raises(FileNotFoundError, match=r"epoch_7.pth does not exist"):
        choose_start(run, resume=run / "epoch_7.pth")
    with pytest.raises(CheckpointError, match=r"initial_weights.pth is damaged"):
        choose_start(run, resume=run / "initial_weights.pth")


def test_going_back_needs_leave_to_delete_what_lies_ahead(run: Path) -> None:
    """Or the next --resume would go on from there."""
    save(run / "iter_25.pth", 25)
    with pytest.raises(WorkDirError, match=r"iter_25.pth|epoch_2.pth"):
        choose_start(run, resume=run / "epoch_1.pth")
    start = choose_start(run, resume=run / "epoch_1.pth", overwrite=True)
    assert start.checkpoint == run / "epoch_1.pth"
    assert {path.name for path in start.obsolete} == {"epoch_2.pth", "iter_25.pth"}
    # Damaged files are no hindrance: no resume takes them.
    (run / "iter_25.pth").write_bytes(b"")
    (run / "epoch_2.pth").write_bytes(b"")
    assert choose_start(run, resume=run / "epoch_1.pth") == Start(run / "epoch_1.pth")


def test_a_named_file_of_elsewhere(run: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other" / "epoch_9.pth", 90)
    assert choose_start(tmp_path / "new", resume=other) == Start(other)
    with pytest.raises(WorkDirError, match=r"epoch_2.pth"):
        choose_start(run, resume=other)
    start = choose_start(run, resume=other, overwrite=True)
    assert {path.name for path in start.obsolete} == {"epoch_1.pth", "epoch_2.pth"}
