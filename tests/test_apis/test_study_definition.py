"""Studies as files: all of configs/studies build, cells chain and are shared, errors say where."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import import_modules_from_strings

from mmconvnextv2.apis.schedules import set_length
from mmconvnextv2.apis.study_definition import Study, StudyError, list_studies, load_study
from mmconvnextv2.apis.study_identity import config_identity

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_SET = ROOT / "configs" / "studies" / "sample_set"
FCMAE = "fcmae/fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py"
SEGMENTOR = "upernet/convnextv2-atto_upernet_1xb16-1000i_sample.py"


@pytest.fixture(scope="module")
def studies() -> dict[str, Study]:
    return {name: load_study(path) for name, path in list_studies(SAMPLE_SET).items()}


def test_the_studies_of_the_sample_set_are_there(studies: dict[str, Study]) -> None:
    assert list(studies) == [
        "codesign",
        "data",
        "grn",
        "initialization",
        "length",
        "masking",
        "rivals",
        "scaling",
    ]
    for study in studies.values():
        assert study.question and all(table.claims for table in study.tables)
        assert all(10 <= seconds <= 900 for seconds in study.seconds.values())


def test_the_page_counts_the_claims(studies: dict[str, Study]) -> None:
    parts = [
        *(t for s in studies.values() for t in s.tables),
        *(s.curves for s in studies.values()),
    ]
    count = sum(len(part.claims) for part in parts if part is not None)
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert f"There are {count} claims" in page.replace("\n  ", " ")


def test_what_is_said_of_cells_and_minutes(studies: dict[str, Study]) -> None:
    readme = (SAMPLE_SET.parent / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    for name, study in studies.items():
        others = {
            cell for other in studies.values() if other is not study for cell in other.seconds
        }
        count, shared = len(study.seconds), len(others & study.seconds.keys())
        assert (SAMPLE_SET / f"{name}.py").read_text(encoding="utf-8").split("\n")[2] == (
            f"{count} cells a seed, about {sum(study.seconds.values()) / 60:.0f} minutes of one "
            f"core; {shared} of them are shared with other studies."
        )
        assert re.search(rf"\| `{name}\.py` \| [^|]+ \| {count} \|", readme), name
    seconds = {cell: value for study in studies.values() for cell, value in study.seconds.items()}
    minutes = sum(seconds.values()) / 60
    assert f"{len(seconds)} cells for each seed, about {minutes:.0f} minutes of one core" in readme


def test_one_name_is_one_cell_in_all_studies(studies: dict[str, Study]) -> None:
    found: dict[str, tuple] = {}
    for study in studies.values():
        for arm in study.arms:
            made_from = (config_identity(arm.config), arm.start, arm.inputs)
            assert found.setdefault(arm.name, made_from) == made_from, arm.name


def test_every_model_of_the_studies_builds(studies: dict[str, Study]) -> None:
    """A changed setting that no part takes is an error here, not in the middle of a study."""
    seen: set[str] = set()
    for arm in {arm.name: arm for study in studies.values() for arm in study.arms}.values():
        model = copy.deepcopy(arm.config.model)
        start = model.backbone.pop("init_cfg", None)
        assert (arm.start is not None) == (start is not None and "checkpoint" in start), arm.name
        if (text := repr(model)) not in seen:
            seen.add(text)
            import_modules_from_strings(**arm.config.custom_imports)
            init_default_scope(arm.config.default_scope)
            with torch.device("meta"):
                MODELS.build(model)
    assert len(seen) > 10


def test_sizes_on_the_axis_are_those_of_the_encoders(studies: dict[str, Study]) -> None:
    init_default_scope("mmpretrain")
    arms = {arm.name: arm for arm in studies["scaling"].arms}
    (table,) = studies["scaling"].tables
    for row in table.rows:
        start = arms[row.cell].start
        if start is not None:
            encoder = MODELS.build(arms[start].config.model.backbone)
            count = sum(parameter.numel() for parameter in encoder.parameters())
            assert row.x == pytest.approx(count / 1e6, abs=0.005)


def write(folder: Path, cells: str, rest: str = "", rows: str = "") -> Path:
    path = folder / "toy.py"
    rows = rows or 'dict(label="ours", cell="tuned")'
    path.write_text(
        f'title = "Toy"\nquestion = "Which?"\ncells = {cells}\n'
        f'tables = [dict(name="t", title="T", metrics=dict(mIoU="mIoU"), rows=[{rows}], {rest})]\n'
    )
    return path


CELLS = f"""{{
    "unused": dict(config="{FCMAE}", steps=3, seconds=1),
    "tuned": dict(config="{SEGMENTOR}", steps=4, seconds=2, start="before"),
    "before": dict(
        config="{FCMAE}", steps=30, seconds=5, options={{"model.data_preprocessor.mask_ratio": 0.4}}
    ),
    "scratch": dict(config="{SEGMENTOR}", steps=4, seconds=2),
}}"""
BOTH = 'dict(label="ours", cell="tuned"), dict(label="scratch", cell="scratch")'


def test_cells_that_are_needed_come_in_order(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, CELLS, rows=BOTH), longer=2)
    assert [arm.name for arm in study.arms] == ["before", "tuned", "scratch"]
    assert study.seconds == {"before": 10, "tuned": 4, "scratch": 4}
    before, tuned, scratch = study.arms
    assert (before.start, tuned.start, scratch.start) == (None, "before", None)
    assert before.config.model.data_preprocessor.mask_ratio == 0.4
    assert before.config.train_cfg.max_iters == 60 and tuned.config.train_cfg.max_iters == 8
    assert before.inputs == (Path("data/sample_set/pretrain"),)

    backbone = tuned.config.model.backbone
    assert backbone.init_cfg.to_dict() == dict(
        type="Pretrained", checkpoint=None, prefix="backbone."
    )
    assert scratch.config.model.backbone.init_cfg is None
    assert tuned.config.optim_wrapper.paramwise_cfg.decay_rate == 0.7
    assert scratch.config.optim_wrapper.paramwise_cfg.decay_rate == 1.0


@pytest.mark.parametrize(
    ("cells", "rest", "rows", "message"),
    [
        (CELLS, "", 'dict(label="a", cell="nowhere")', "there is no cell 'nowhere'"),
        (CELLS, "", 'dict(label="a", cell="tuned", y=1)', "a row of table 't' has other entries"),
        (CELLS, 'colour="red"', "", "table 't' has other entries.*colour"),
        (CELLS, 'x="size"', "", "is drawn over 'size', so each row needs its x"),
        (CELLS, 'claims=[dict(says="", better="ours", than="all")]', "", r"names \['all'\]"),
        (CELLS, 'claims=[dict(says="", better=["ours", "b"], than="ours")]', "", r"names \['b'\]"),
        (CELLS, "", 'dict(label="a", cell="tuned"), dict(label="a", cell="before")', "different"),
        ('{"tuned": dict(config="a.py", seconds=1)}', "", "", "cell 'tuned' has other entries"),
        (
            '{"tuned": dict(config="a", steps=1, seconds=1, start="b"),'
            ' "b": dict(config="a", steps=1, seconds=1, start="tuned")}',
            "",
            "",
            "start from each other: tuned from b from tuned",
        ),
        (
            CELLS.replace("model.data_preprocessor.mask_ratio", "train_dataloader.batch_size.a"),
            "",
            "",
            "cell 'before'.*no such entry",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    cells: str, rest: str, rows: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match=message):
        load_study(write(tmp_path, cells, rest, rows))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no study"):
        list_studies(tmp_path)
    with pytest.raises(FileNotFoundError, match="no study"):
        load_study(tmp_path / "a.py")
    (tmp_path / "a.py").write_text('title = "A"\n')
    (tmp_path / "_cells.py").write_text("cells = {}\n")
    assert list(list_studies(tmp_path)) == ["a"]
    with pytest.raises(StudyError, match="lacks question, cells, tables"):
        load_study(tmp_path / "a.py")
    with pytest.raises(ValueError, match="longer must be at least 1, got 0"):
        load_study(tmp_path / "a.py", longer=0)


def test_a_length_in_steps() -> None:
    cfg = Config.fromfile(ROOT / "configs" / FCMAE)
    set_length(cfg, 200)
    assert cfg.train_cfg.max_iters == cfg.train_cfg.val_interval == 200
    warm, fall = cfg.param_scheduler
    assert (warm.begin, warm.end, fall.begin, fall.end) == (0, 20, 20, 200)
    assert cfg.train_dataloader.sampler.type == "StatelessInfiniteSampler"
    set_length(cfg, 9)
    assert [scheduler.type for scheduler in cfg.param_scheduler] == ["CosineAnnealingLR"]
    set_length(cfg, 10_000)
    assert cfg.param_scheduler[0].end == 50
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        set_length(cfg, 0)
