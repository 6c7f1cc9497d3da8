"""tools/train.py, tools/test.py and the launch scripts: arguments, errors, a small real run."""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.config import Config

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"

TOY_MODULE = """
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS


@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x, mode='tensor'):
        y = self.linear(torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1))
        return dict(loss=((y - 1) ** 2).mean()) if mode == 'loss' else [y]


@DATASETS.register_module(force=True)
class ToyData(torch.utils.data.Dataset):
    metainfo = dict()

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(x=float(index))


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.extend(data_batch['x'])

    def compute_metrics(self, results):
        return dict(seen=len(results))
"""

TOY_CONFIG = """
custom_imports = dict(imports=['{module}'], allow_failed_imports=False)
model = dict(type='ToyModel')
sampler = dict(type='DefaultSampler', shuffle=True)
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(type='ToyData'), sampler=sampler)
test_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(type='ToyData'),
                       sampler=dict(type='DefaultSampler', shuffle=False))
test_evaluator = dict(type='ToyMetric')
test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.16),
                     accumulative_counts=2)
auto_scale_lr = dict(base_batch_size=16)
custom_hooks = [dict(type='LearningRateTermsHook')]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
env_cfg = dict(dist_cfg=dict(backend='nccl'))
randomness = dict(seed=0)
"""


def load_tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_tool", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of a config that trains one linear layer, in the working directory of the test."""
    name = f"toy_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(TOY_MODULE)
    config = tmp_path / "toy.py"
    config.write_text(TOY_CONFIG.format(module=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    return config


class Launched(Exception):
    """Raised in the place of building a Runner."""


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch):
    """Run a tool's main() up to the Runner; returns its exit status, or config and log lines."""

    def run(name: str, *arguments: str) -> int | tuple[Config, list[str]]:
        tool = load_tool(name)
        caught = {}

        def catch(cfg: Config, notes: list[str], **start: object) -> None:
            caught.update(cfg=cfg, notes=notes)
            run.start = start
            raise Launched

        monkeypatch.setattr(tool, "train" if name == "train" else "build_runner", catch)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        try:
            return tool.main()
        except Launched:
            return caught["cfg"], caught["notes"]

    return run


def test_a_missing_config_is_one_line_and_status_2(tmp_path):
    result = subprocess.run(
        [sys.executable, str(TOOLS / "train.py"), "no/such_config.py"],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    (line,) = [text for text in result.stderr.splitlines() if "Warning" not in text]
    assert line.startswith("train.py: config 'no/such_config.py' is not a file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--launcher", "pytorch"], "WORLD_SIZE"),
        (["--auto-scale-lr", "--cfg-options", "auto_scale_lr=None"], "base_batch_size"),
        (["--amp", "--cfg-options", "optim_wrapper.type=ApexOptimWrapper"], "ApexOptimWrapper"),
    ],
)
def test_train_refuses_in_one_line(toy, run_main, capsys, monkeypatch, arguments, words):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert run_main("train", toy, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="only a machine without a GPU refuses")
def test_slurm_without_a_gpu_is_refused(toy, run_main, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert run_main("train", toy, "--launcher", "slurm") == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_defaults(toy, run_main):
    cfg, notes = run_main("train", toy)
    assert Path(cfg.work_dir) == Path("work_dirs/toy")
    assert cfg.launcher == "none"
    assert run_main.start == dict(resume=False, overwrite=False)
    assert cfg.optim_wrapper.type == "OptimWrapper"
    assert cfg.optim_wrapper.optimizer.lr == 0.16
    assert notes == []


def test_options_reach_the_config(toy, run_main):
    options = ["train_dataloader.batch_size=4", "randomness.seed=7"]
    cfg, _ = run_main(
        "train", toy, "--work-dir", "elsewhere", "--resume", "--cfg-options", *options
    )
    assert cfg.work_dir == "elsewhere"
    assert run_main.start == dict(resume=True, overwrite=False)
    assert (cfg.train_dataloader.batch_size, cfg.randomness.seed) == (4, 7)


def test_resume_from_a_file(toy, run_main):
    run_main("train", toy, "--resume", "epoch_3.pth", "--overwrite")
    assert run_main.start == dict(resume="epoch_3.pth", overwrite=True)


def run_train(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str):
    """Train the toy in this process; returns exit status and all that was printed."""
    monkeypatch.setattr(sys, "argv", ["train.py", "toy.py", *arguments])
    status = load_tool("train").main()
    return status, "".join(capfd.readouterr())


def epochs(number: int) -> list[str]:
    """Options for so many epochs, under a name of their own: Runners of one share their history."""
    return ["--cfg-options", f"train_cfg.max_epochs={number}", f"experiment_name=toy{number}"]


@pytest.mark.fault(3, "training started again in the same folder", "refused until a flag says how")
def test_a_second_start_needs_a_flag(toy, monkeypatch, capfd):
    train = partial(run_train, monkeypatch, capfd)
    folder = Path("work_dirs/toy")
    status, said = train("--resume", *epochs(2))
    assert status == 0 and "no checkpoint to resume from: the run starts anew" in said
    assert "DurableCheckpointHook takes the place of CheckpointHook" in said
    assert sorted(path.name for path in folder.glob("*.pth")) == ["epoch_1.pth", "epoch_2.pth"]

    status, said = train(*epochs(1))
    (line,) = [text for text in said.splitlines() if text.startswith("train.py")]
    assert status == 2 and "--resume goes on with it, --overwrite replaces it" in line
    assert sorted(path.name for path in folder.glob("*.pth")) == ["epoch_1.pth", "epoch_2.pth"]

    # The newest is damaged, and mmengine's pointer is gone.
    (folder / "epoch_2.pth").write_bytes((folder / "epoch_2.pth").read_bytes()[:-100])
    (folder / "last_checkpoint").unlink()
    status, said = train("--resume", *epochs(3))
    assert status == 0
    assert "not resumed from: work_dirs/toy/epoch_2.pth is damaged" in said
    assert "resumed epoch: 1, iter: 4" in said
    assert len(list(folder.glob("epoch_*.pth"))) == 3

    status, said = train("--overwrite", *epochs(1))
    assert status == 0 and "deleted work_dirs/toy/epoch_3.pth" in said
    assert [path.name for path in folder.glob("*.pth")] == ["epoch_1.pth"]
    assert (folder / "last_checkpoint").read_text().endswith("epoch_1.pth")


@pytest.mark.fault(3, "every checkpoint damaged; a named one missing", "an error, no new start")
def test_nothing_to_go_on_from_is_one_line(toy, monkeypatch, capfd):
    train = partial(run_train, monkeypatch, capfd)
    folder = Path("work_dirs/toy")
    folder.mkdir(parents=True)
    (folder / "epoch_1.pth").write_bytes(b"half of it")
    for arguments, words in (
        (["--resume"], "no checkpoint that it could go on from"),
        (["--resume", "gone.pth"], "checkpoint gone.pth does not exist"),
        (["--resume", "--overwrite"], "give one of them"),
    ):
        status, said = train(*arguments)
        assert status == 2
        (line,) = said.splitlines()
        assert line.startswith("train.py: ") and words in line
    assert [path.name for path in folder.iterdir()] == ["epoch_1.pth"]


@pytest.mark.fault(1, "the disk full during a save, from the command line", "status 2 and one line")
def test_a_full_disk_is_one_line(toy, monkeypatch, capfd):
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    status, said = run_train(monkeypatch, capfd, *epochs(1))
    assert status == 2
    assert "train.py: [Errno 28] No space left on device: the run stops" in said.splitlines()[-1]
    assert not list(Path("work_dirs/toy").glob("*.p*t*"))


def test_a_failed_start_leaves_the_run_it_would_replace(toy, monkeypatch, capfd):
    train = partial(run_train, monkeypatch, capfd)
    assert train(*epochs(1))[0] == 0
    before = Path("work_dirs/toy/epoch_1.pth").read_bytes()
    options = ["train_dataloader.batch_size=9", "train_dataloader.drop_last=True"]
    status, said = train("--overwrite", "--cfg-options", *options)
    assert status == 2 and "do not fill one batch" in said
    assert Path("work_dirs/toy/epoch_1.pth").read_bytes() == before


def test_a_checkpoint_hook_with_other_settings_is_refused_by_name(toy, monkeypatch, capfd):
    with pytest.raises(TypeError, match="out_dir"):
        run_train(monkeypatch, capfd, "--cfg-options", "default_hooks.checkpoint.out_dir=elsewhere")


def test_a_clean_stop_passes_its_status_on(toy, monkeypatch):
    tool, left = load_tool("train"), []

    def stop(*_: object, **__: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(tool, "train", stop)
    monkeypatch.setattr(tool, "leave_processes", lambda: left.append(True))
    monkeypatch.setattr(sys, "argv", ["train.py", str(toy)])
    with pytest.raises(SystemExit) as ended:
        tool.main()
    assert ended.value.code == 143 and left == [True]


def test_amp_changes_the_wrapper_and_keeps_its_arguments(toy, run_main):
    cfg, (note,) = run_main("train", toy, "--amp")
    assert cfg.optim_wrapper.type == "AutocastOptimWrapper"
    assert cfg.optim_wrapper.accumulative_counts == 2
    assert cfg.optim_wrapper.optimizer.lr == 0.16
    assert "bf16" in note


def test_amp_leaves_an_amp_wrapper_and_says_so(toy, run_main):
    option = "optim_wrapper.type=AmpOptimWrapper"
    cfg, (note,) = run_main("train", toy, "--amp", "--cfg-options", option)
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    assert "stays" in note


@pytest.mark.parametrize(
    "switch", [["--auto-scale-lr"], ["--cfg-options", "auto_scale_lr.enable=True"]]
)
def test_auto_scale_lr_counts_accumulated_batches(toy, run_main, switch):
    cfg, (note,) = run_main("train", toy, *switch)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.04)  # 1 x 2 x 2 of 16 images
    assert cfg.auto_scale_lr.enable is False
    assert "= 4 images" in note


def test_the_class_of_the_runner_comes_from_the_config(toy, monkeypatch):
    from mmengine.registry import RUNNERS

    from mmconvnextv2.apis.launch import build_runner

    class ToyRunner:
        def __init__(self, cfg: Config) -> None:
            self.cfg, self.lines = cfg, []
            self.logger = self

        def info(self, line: str) -> None:
            self.lines.append(line)

        from_cfg = classmethod(lambda cls, cfg: cls(cfg))

    monkeypatch.setitem(RUNNERS.module_dict, "ToyRunner", ToyRunner)
    runner = build_runner(Config(dict(runner_type="ToyRunner")), ["a note"])
    assert isinstance(runner, ToyRunner)
    assert runner.lines[0].startswith("software: ") and runner.lines[1] == "a note"
    added = [hook["type"] for hook in runner.cfg.custom_hooks]
    assert added == ["ConsolidateOptimizerHook", "PortableCheckpointHook", "StrictLoadingHook"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone.pth"], "gone.pth"),
        (["toy.py", "--out", "results.txt"], ".pkl"),
        (["toy.py", "--show-dir", "pictures"], "visualization"),
        (["toy.py", "--tta"], "tta_model"),
        (["toy.py", "--cfg-options", "test_dataloader=None"], "nothing to test"),
    ],
)
def test_test_refuses_in_one_line(toy, run_main, capsys, arguments, words):
    assert run_main("test", toy, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("VisualizationHook", dict(enable=True, out_dir="pictures")),
        ("DetVisualizationHook", dict(draw=True, test_out_dir="pictures")),
        ("SegVisualizationHook", dict(draw=True)),
    ],
)
def test_show_dir_switches_on_the_hook_of_the_task(toy, run_main, kind, expected):
    options = [f"default_hooks.visualization.type={kind}", "visualizer.type=Visualizer"]
    cfg, _ = run_main("test", toy, "toy.py", "--show-dir", "pictures", "--cfg-options", *options)
    hook = dict(cfg.default_hooks.visualization)
    for key, value in expected.items():
        wanted = str(Path("pictures").resolve()) if value == "pictures" else value
        assert hook[key] == wanted
    if kind == "SegVisualizationHook":
        assert cfg.visualizer.save_dir == str(Path("pictures").resolve())


def test_out_adds_the_evaluator_that_writes_predictions(toy, run_main):
    cfg, _ = run_main("test", toy, "toy.py", "--out", "results.pkl")
    assert [evaluator.type for evaluator in cfg.test_evaluator] == ["ToyMetric", "DumpResults"]


def test_tta_wraps_the_model_and_takes_its_pipeline(toy, run_main):
    toy.write_text(
        toy.read_text()
        + "\ntta_model = dict(type='ToyTTA')\ntta_pipeline = [dict(type='ToyAug')]\n"
    )
    plain, _ = run_main("test", toy, "toy.py")
    cfg, _ = run_main("test", toy, "toy.py", "--tta")
    assert cfg.model == dict(type="ToyTTA", module=plain.model)
    assert cfg.test_dataloader.dataset.pipeline == [dict(type="ToyAug")]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_script(script: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a launch script of tools/."""
    return subprocess.run(
        ["bash", str(TOOLS / script), *map(str, arguments)],
        env=dict(os.environ, **environ),
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU's way through the launcher")
def test_two_processes_train_resume_and_test_on_the_cpu(toy):
    environ = dict(PYTHON=sys.executable, PORT=str(free_port()), OMP_NUM_THREADS="1")
    first = run_script("dist_train.sh", toy, "2", "--auto-scale-lr", **environ)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 processes on the CPU, backend gloo" in first.stdout
    assert "scaled by 0.5 to 0.08" in first.stdout  # 2 x 2 x 2 of 16 images

    more = ["--resume", "--cfg-options", "train_cfg.max_epochs=2"]
    second = run_script("dist_train.sh", toy, "2", "--auto-scale-lr", *more, **environ)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "epoch: 1" in second.stdout  # resumed there
    assert Path("work_dirs/toy/epoch_2.pth").is_file()

    tested = run_script("dist_test.sh", toy, "work_dirs/toy/epoch_2.pth", "2", **environ)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "seen: 8" in tested.stdout


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_stops_the_test(toy, monkeypatch):
    torch.save(dict(state_dict={"linear.weight": torch.zeros(1, 1)}, meta={}), "half.pth")
    result = subprocess.run(
        [sys.executable, str(TOOLS / "test.py"), str(toy), "half.pth"],
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "linear.bias" in result.stderr


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """An environment whose PYTHON and srun print their arguments, one a line."""
    bin_dir = tmp_path / "stub"
    bin_dir.mkdir()
    for name in ("python", "srun"):
        (bin_dir / name).write_text(f'#!/bin/sh\necho {name}\nprintf "%s\\n" "$@"\n')
        (bin_dir / name).chmod(0o755)
    return dict(PATH=f"{bin_dir}:/usr/bin:/bin", PYTHON=str(bin_dir / "python"))


@pytest.mark.parametrize("script", sorted(path.name for path in TOOLS.glob("*.sh")))
def test_scripts_parse_and_say_how_they_are_used(script):
    subprocess.run(["bash", "-n", str(TOOLS / script)], check=True)
    result = run_script(script)
    assert result.returncode == 2
    assert "usage:" in result.stderr


def test_dist_train_hands_everything_to_torchrun(stub):
    result = run_script(
        "dist_train.sh",
        "my config.py",
        "4",
        "--work-dir",
        "a b",
        "--amp",
        **stub,
        NODE_RANK="1",
        NNODES="2",
        MASTER_ADDR="10.0.0.1",
        PORT="12345",
    )
    assert result.stdout.splitlines() == [
        "python",
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--node_rank=1",
        "--master_addr=10.0.0.1",
        "--master_port=12345",
        "--nproc_per_node=4",
        "--max-restarts=0",
        str(TOOLS / "train.py"),
        "my config.py",
        "--launcher",
        "pytorch",
        "--work-dir",
        "a b",
        "--amp",
    ]


def test_a_job_that_starts_again_has_a_store_for_each_start(stub):
    result = run_script("dist_train.sh", "c.py", "2", **stub, MAX_RESTARTS="3", PORT="12345")
    assert result.stdout.splitlines() == [
        "python",
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=127.0.0.1:12345",
        "--local_addr=127.0.0.1",
        "--nproc_per_node=2",
        "--max-restarts=3",
        str(TOOLS / "train.py"),
        "c.py",
        "--launcher",
        "pytorch",
    ]


def test_several_machines_cannot_start_again_by_themselves(stub):
    result = run_script("dist_train.sh", "c.py", "2", **stub, MAX_RESTARTS="3", NNODES="2")
    assert result.returncode == 2
    assert not result.stdout
    assert "MAX_RESTARTS=3 works on one machine and NNODES is 2" in result.stderr


def test_dist_test_has_its_defaults_for_one_machine(stub):
    lines = run_script("dist_test.sh", "c.py", "w.pth", "2", "--out", "r.pkl", **stub).stdout
    assert lines.splitlines() == [
        "python",
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--node_rank=0",
        "--master_addr=127.0.0.1",
        "--master_port=29500",
        "--nproc_per_node=2",
        str(TOOLS / "test.py"),
        "c.py",
        "w.pth",
        "--launcher",
        "pytorch",
        "--out",
        "r.pkl",
    ]


def test_slurm_test_passes_the_checkpoint(stub):
    lines = run_script("slurm_test.sh", "p", "j", "c.py", "w.pth", "--out", "r.pkl", **stub).stdout
    assert lines.splitlines()[-6:] == ["c.py", "w.pth", "--launcher", "slurm", "--out", "r.pkl"]


def test_a_knob_on_the_command_line_is_refused_with_the_key(tmp_path, run_main, capsys):
    config = tmp_path / "knobs.py"
    config.write_text("max_epochs = 8\nseed_text = 'a'\ntrain_cfg = dict(max_epochs=max_epochs)\n")
    assert run_main("train", config, "--cfg-options", "max_epochs=2") == 2
    assert "set train_cfg.max_epochs instead" in capsys.readouterr().err
    assert run_main("train", config, "--cfg-options", "seed_text=b") == 2
    assert "set the key that is built from it" in capsys.readouterr().err


def test_a_missing_folder_of_images_is_one_line(tmp_path, capfd):
    run = subprocess.run(
        [
            sys.executable,
            str(TOOLS / "train.py"),
            str(ROOT / "configs" / "fcmae" / "fcmae_convnextv2-atto_64xb64-coslr-800e_in1k.py"),
            "--work-dir",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("train.py: no image folder at data/imagenet")
    assert "Traceback" not in run.stderr
