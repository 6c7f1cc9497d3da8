"""A study: cells in order, resuming without repetition, refusal to mix, means against NumPy."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from mmconvnextv2.apis import study, study_identity
from mmconvnextv2.apis.study import (
    WEIGHTS,
    Arm,
    StudyMismatchError,
    cell_states,
    markdown_table,
    run_study,
    summarize,
)
from mmconvnextv2.apis.study_identity import code_identity, identity_of

pytestmark = pytest.mark.unit


def config(**settings: object) -> Config:
    return Config(dict(model=dict(width=3), train_dataloader=dict(num_workers=2), **settings))


class Recorder:
    """Stands in for training: remembers its calls, fails when it is told to."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self.configs: list[Config] = []
        self.fail_at = fail_at

    def __call__(self, cfg: Config) -> dict[str, float]:
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        arm, seed = Path(cfg.work_dir).parts[-2:]
        self.calls.append((arm, cfg.randomness.seed))
        self.configs.append(cfg)
        assert seed == f"seed{cfg.randomness.seed}"
        value = {"a": 10.0, "b": 20.0}[arm] + cfg.randomness.seed**2
        return dict(score=value, other=-value)


ARMS = (Arm("a", config()), Arm("b", config(lr=0.1)))


def test_fills_the_table_seed_by_seed(tmp_path: Path) -> None:
    run = Recorder()
    results = run_study(ARMS, (3, 1), tmp_path, run)
    assert run.calls == [("a", 3), ("b", 3), ("a", 1), ("b", 1)]
    assert results["b"] == {3: dict(score=29.0, other=-29.0), 1: dict(score=21.0, other=-21.0)}
    assert all(cfg.resume is True for cfg in run.configs)
    assert len({cfg.experiment_name for cfg in run.configs}) == 4
    assert "randomness" not in ARMS[0].config, "the arm's config stays as it is"
    content = json.loads((tmp_path / "study.json").read_text())
    assert content["a"]["seeds"] == {"3": results["a"][3], "1": results["a"][1]}
    assert content["a"]["mean"]["score"] == 15.0
    assert content["a"]["std"]["score"] == pytest.approx(np.std([19.0, 11.0], ddof=1))
    assert "| a | 2 | 15 ± 5.7 | -15 ± 5.7 |" in (tmp_path / "study.md").read_text()


def test_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole = run_study(ARMS, (0, 1), tmp_path / "whole", Recorder())
    with pytest.raises(KeyboardInterrupt):
        run_study(ARMS, (0, 1), tmp_path / "parts", Recorder(fail_at=3))
    assert "| b | 1 | 20 |" in (tmp_path / "parts" / "study.md").read_text()
    second = Recorder()
    assert run_study(ARMS, (0, 1), tmp_path / "parts", second) == whole
    assert second.calls == [("b", 1)]
    third = Recorder()
    assert run_study(ARMS, (0, 1), tmp_path / "parts", third) == whole
    assert third.calls == []
    more = Recorder()
    run_study(ARMS, (0, 1, 2), tmp_path / "parts", more)
    assert more.calls == [("a", 2), ("b", 2)]


def test_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    whole = run_study(ARMS, (0, 1), tmp_path / "whole", Recorder())
    if (child := os.fork()) == 0:
        trained = Recorder()

        def run(cfg: Config) -> dict[str, float]:
            metrics = trained(cfg)
            if len(trained.calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return metrics

        try:
            run_study(ARMS, (0, 1), tmp_path / "parts", run)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    rest = Recorder()
    assert run_study(ARMS, (0, 1), tmp_path / "parts", rest) == whole
    assert rest.calls == [("a", 1), ("b", 1)], "the killed cell again, and none before it"


def test_settings_without_effect_may_change(tmp_path: Path) -> None:
    run_study(ARMS[:1], (0,), tmp_path, Recorder())
    again = Recorder()
    changed = config(resume=True)
    changed.train_dataloader.num_workers = 9
    run_study([Arm("a", changed)], (0,), tmp_path, again)
    assert again.calls == []


def test_another_config_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    run_study(ARMS, (0,), tmp_path, Recorder())
    changed = config(lr=0.1)
    changed.model.width = 4
    run = Recorder()
    with pytest.raises(StudyMismatchError, match=r"b/seed0.*config model.width: 3 there, 4 now"):
        run_study([ARMS[0], Arm("b", changed)], (1, 0), tmp_path, run)
    assert run.calls == []
    with pytest.raises(StudyMismatchError, match="config lr: 0.1 there, not set now"):
        run_study([ARMS[0], Arm("b", config())], (0,), tmp_path, run)


def test_a_begun_cell_of_another_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_study(ARMS[:1], (0,), tmp_path, Recorder(fail_at=0))
    with pytest.raises(StudyMismatchError, match="config lr"):
        run_study([Arm("a", config(lr=1.0))], (0,), tmp_path, Recorder())


def test_other_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_study(ARMS[:1], (0,), tmp_path, Recorder())
    monkeypatch.setattr(study, "code_identity", lambda: {"mmconvnextv2": "edited"})
    with pytest.raises(StudyMismatchError, match="code mmconvnextv2: [0-9a-f]{64} there, edited"):
        run_study(ARMS[:1], (0,), tmp_path, Recorder())


def test_code_is_every_source_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nn").mkdir()
    (tmp_path / "visualization").mkdir()
    (tmp_path / "__init__.py").write_text("")
    module = tmp_path / "nn" / "block.py"
    module.write_text("a = 1\n")
    monkeypatch.setattr(study_identity.mmconvnextv2, "__file__", str(tmp_path / "__init__.py"))
    before = code_identity()
    assert before == code_identity() and "torch" in before
    module.write_text("a = 2\n")
    assert code_identity()["mmconvnextv2"] != before["mmconvnextv2"]
    module.write_text("a = 1\n")
    (tmp_path / "visualization" / "study.py").write_text("a picture that is drawn otherwise\n")
    assert code_identity() == before
    module.rename(tmp_path / "nn" / "other.py")
    assert code_identity()["mmconvnextv2"] != before["mmconvnextv2"]


def test_sources_without_effect_exist() -> None:
    package = Path(study_identity.mmconvnextv2.__file__).parent
    assert [name for name in study_identity.WITHOUT_EFFECT if not (package / name).exists()] == []


def test_weights_that_changed_under_their_name_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    arm = Arm("a", config(), inputs=(weights,))
    run_study([arm], (0,), tmp_path / "study", Recorder())
    weights.write_bytes(b"two")
    with pytest.raises(StudyMismatchError, match=r"content of .*weights.pth"):
        run_study([arm], (0,), tmp_path / "study", Recorder())
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"weights.pth"):
        run_study([arm], (0,), tmp_path / "study", Recorder())


def test_a_folder_counts_by_annotations_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"xy")
    before = identity_of(tmp_path)
    assert before == identity_of(tmp_path)
    (tmp_path / "a" / "1.png").write_bytes(b"xyz")
    assert identity_of(tmp_path) != before
    (tmp_path / "a" / "1.png").write_bytes(b"xy")
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "2.png")
    assert identity_of(tmp_path) != before
    (tmp_path / "boxes.json").write_text("[1, 2]")
    before = identity_of(tmp_path)
    (tmp_path / "boxes.json").write_text("[1, 3]")
    assert identity_of(tmp_path) != before, "an edit of the same size"


class Chain:
    """Stands in for training of cells that start from others: a cell's weights name its history."""

    def __init__(self) -> None:
        self.history: dict[str, str] = {}

    def __call__(self, cfg: Config) -> dict[str, float]:
        folder = Path(cfg.work_dir)
        start = cfg.model.get("backbone", {}).get("init_cfg")
        before = "" if start is None else Path(start.checkpoint).read_text() + " > "
        name = f"{folder.parent.name}{cfg.randomness.seed}"
        self.history[name] = f"{before}{name}"
        (folder / WEIGHTS).write_text(self.history[name])
        return dict(score=1.0)


def pretraining(**settings: object) -> Arm:
    return Arm("pretraining", config(**settings))


def fine_tuning() -> Arm:
    cfg = config()
    cfg.model.backbone = dict(init_cfg=dict(type="Pretrained", checkpoint=None))
    return Arm("fine-tuning", cfg, start="pretraining")


def test_a_cell_starts_from_the_weights_of_the_same_seed(tmp_path: Path) -> None:
    chain = Chain()
    run_study([pretraining(), fine_tuning()], (0, 1), tmp_path, chain)
    assert chain.history["fine-tuning0"] == "pretraining0 > fine-tuning0"
    assert chain.history["fine-tuning1"] == "pretraining1 > fine-tuning1"
    again = Chain()
    run_study([pretraining(), fine_tuning()], (0, 1), tmp_path, again)
    assert not again.history


def test_what_a_cell_starts_from_counts_as_its_own(tmp_path: Path) -> None:
    run_study([pretraining(), fine_tuning()], (0,), tmp_path, Chain())
    (tmp_path / "pretraining" / "seed0" / "cell.json").unlink()
    with pytest.raises(StudyMismatchError, match=r"fine-tuning/seed0.*\(start from pretraining: "):
        run_study([pretraining(lr=3), fine_tuning()], (0,), tmp_path, Chain())


def test_weights_that_are_gone_are_missed(tmp_path: Path) -> None:
    run_study([pretraining()], (0,), tmp_path, Chain())
    (tmp_path / "pretraining" / "seed0" / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"starts from .*{WEIGHTS}, and that is not there"):
        run_study([pretraining(), fine_tuning()], (0,), tmp_path, Chain())
    with pytest.raises(ValueError, match="starts from 'pretraining', which is none"):
        run_study([fine_tuning(), pretraining()], (0,), tmp_path, Chain())


def test_states_of_cells(tmp_path: Path) -> None:
    run_study(ARMS, (0,), tmp_path, Recorder())
    with pytest.raises(KeyboardInterrupt):
        run_study(ARMS, (1,), tmp_path, Recorder(fail_at=0))
    files = sorted(tmp_path.rglob("*"))
    other = (ARMS[0], Arm("b", config(lr=0.2)))
    assert cell_states(other, (0, 1), tmp_path) == {
        ("a", 0): "finished",
        ("b", 0): "made from something else",
        ("a", 1): "begun",
        ("b", 1): "new",
    }
    assert sorted(tmp_path.rglob("*")) == files, "nothing is changed"


@pytest.mark.parametrize(
    ("arms", "seeds", "message"),
    [
        ((), (0,), "needs an arm and a seed"),
        (ARMS, (), "needs an arm and a seed"),
        ((ARMS[0], ARMS[0]), (0,), "names of arms must differ"),
        (ARMS, (1, 1), "seeds must differ"),
        ((Arm("../a", config()),), (0,), r"got '../a'"),
        ((Arm("..", config()),), (0,), r"got '..'"),
    ],
)
def test_bad_tables(arms: tuple, seeds: tuple, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run_study(arms, seeds, tmp_path, Recorder())
    assert not list(tmp_path.iterdir())


def test_summaries_against_numpy() -> None:
    values = {"a": [1.5, 2.5, 7.25], "b": [3.0]}
    results = {
        name: {seed: dict(score=value) for seed, value in enumerate(row)}
        for name, row in values.items()
    }
    found = summarize(results, "score")
    assert found["a"].mean == pytest.approx(np.mean(values["a"]))
    assert found["a"].std == pytest.approx(np.std(values["a"], ddof=1))
    assert found["b"].mean == 3.0 and math.isnan(found["b"].std)
    assert markdown_table(results, ["score"]).splitlines()[2:] == [
        "| a | 3 | 3.75 ± 3.1 |",
        "| b | 1 | 3 |",
    ]
    beside = markdown_table(results, {"score": "points"}, {"paper": {"b": "83.7"}}).splitlines()
    assert beside[0] == "| | seeds | points | paper |"
    assert beside[2:] == ["| a | 3 | 3.75 ± 3.1 |  |", "| b | 1 | 3 | 83.7 |"]
    with pytest.raises(ValueError, match="a, seed 0 has no metric 'loss': it has score"):
        summarize(results, "loss")


def test_a_cell_that_another_process_trains_comes_last(tmp_path: Path) -> None:
    held = tmp_path / "pretraining" / "seed0"
    held.mkdir(parents=True)
    lock = (held / "cell.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    trained: list[str] = []

    def run(cfg: Config) -> dict[str, float]:
        folder = Path(cfg.work_dir)
        trained.append("/".join(folder.parts[-2:]))
        if len(trained) == 4:  # all that does not start from the held cell
            lock.close()
        (folder / WEIGHTS).write_bytes(b"weights")
        return dict(score=float(len(trained)))

    arms = (pretraining(), fine_tuning(), Arm("scratch", config()))
    results = run_study(arms, (0, 1), tmp_path, run)
    seed1 = ["pretraining/seed1", "fine-tuning/seed1", "scratch/seed1"]
    assert trained == ["scratch/seed0", *seed1, "pretraining/seed0", "fine-tuning/seed0"]
    assert [list(cells) for cells in results.values()] == [[0, 1]] * 3, "seeds in their order"


def test_studies_side_by_side_train_a_shared_cell_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, second_waits = threading.Event(), threading.Event()
    lock = fcntl.flock

    def flock(file: object, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            second_waits.set()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    recorder = Recorder()

    def run(cfg: Config) -> dict[str, float]:
        begun.set()
        assert second_waits.wait(30), "the second study does not wait for the cell"
        return recorder(cfg)

    with ThreadPoolExecutor(1) as other:
        first = other.submit(run_study, ARMS[:1], (0,), tmp_path, run)
        assert begun.wait(30)
        second = run_study(ARMS[:1], (0,), tmp_path, run)
    assert recorder.calls == [("a", 0)]
    assert first.result() == second == {"a": {0: dict(score=10.0, other=-10.0)}}
    assert "another process is training it" in capsys.readouterr().out
