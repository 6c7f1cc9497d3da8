"""tools/setup_env.py without installing anything: checks, stamp, progress and error lines."""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "setup_env.py"
PY311 = (3, 11, 7)


@pytest.fixture
def setup_env() -> ModuleType:
    """A fresh copy of the script as a module."""
    spec = importlib.util.spec_from_file_location("setup_env_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that decide whether an environment is up to date, in a directory of their own."""
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "tools").mkdir()
    for name in ("setup.py", "pyproject.toml", "tools/setup_env.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_parses_under_old_interpreters_and_needs_no_package():
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 9, 18), (3, 13, 0), (4, 0, 0)])
def test_refuses_other_pythons_in_one_line(setup_env, version):
    line = setup_env.python_problem(version, "/opt/python")
    assert "\n" not in line
    assert ".".join(map(str, version)) in line
    assert "/opt/python" in line
    assert "make PYTHON=" in line


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 11, 7), (3, 12, 9)])
def test_accepts_the_supported_pythons(setup_env, version):
    assert setup_env.python_problem(version, "python3") is None


def test_main_refuses_before_it_touches_anything(setup_env, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(setup_env, "ROOT", str(tmp_path))
    monkeypatch.setattr(setup_env.sys, "version_info", (3, 9, 1, "final", 0))
    assert setup_env.main([]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("set-up: needs Python 3.10")
    assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_names_every_missing_part_and_its_package_in_one_line(setup_env, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setattr(
        setup_env.sysconfig, "get_paths", lambda: {"include": str(tmp_path / "nowhere")}
    )
    with pytest.raises(setup_env.SetupError) as raised:
        setup_env.check_machine(str(tmp_path))
    line = str(raised.value)
    assert "\n" not in line
    what, install = line.split(": apt-get install ")
    assert "g++" in what and "Python.h" in what
    assert "g++" in install.split()
    assert "python{}.{}-dev".format(*sys.version_info[:2]) in install.split()


def test_refuses_a_full_disk_unless_torch_is_there(setup_env, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")(100e9, 95e9, 5e9)
    monkeypatch.setattr(setup_env, "missing_parts", lambda: [])
    monkeypatch.setattr(setup_env.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(setup_env.SetupError, match=r"5\.0 GB are free .* 12 GB are needed"):
        setup_env.check_machine(str(tmp_path))
    (tmp_path / "lib" / "python3.11" / "site-packages" / "torch").mkdir(parents=True)
    setup_env.check_machine(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "relevant"),
    [
        ("requirements/openmmlab.txt", True),
        ("requirements/tests.txt", True),
        ("requirements/runtime.txt", True),
        ("requirements/build.txt", True),
        ("setup.py", True),
        ("pyproject.toml", True),
        ("requirements/classic.txt", False),
        ("requirements/docs.txt", False),
    ],
)
def test_stamp_follows_the_files_of_its_stack(setup_env, checkout, name, relevant):
    before = setup_env.fingerprint(str(checkout), "openmmlab", PY311, False)
    assert before == setup_env.fingerprint(str(checkout), "openmmlab", PY311, False)
    with (checkout / name).open("a") as file:
        file.write("\n# changed\n")
    after = setup_env.fingerprint(str(checkout), "openmmlab", PY311, False)
    assert (after != before) is relevant


def test_stamp_follows_interpreter_stack_gpu_and_place(setup_env, checkout, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("moved") / "checkout"
    shutil.copytree(checkout, elsewhere)
    stamps = [
        setup_env.fingerprint(str(checkout), "openmmlab", PY311, False),
        setup_env.fingerprint(str(checkout), "openmmlab", (3, 12, 1), False),
        setup_env.fingerprint(str(checkout), "openmmlab", PY311, True),
        setup_env.fingerprint(str(checkout), "classic", PY311, False),
        setup_env.fingerprint(str(elsewhere), "openmmlab", PY311, False),
    ]
    assert len(set(stamps)) == len(stamps)


def make_finished_env(setup_env: ModuleType, checkout: Path) -> Path:
    """A directory that looks like a finished environment of the checkout."""
    env = checkout / ".venv"
    (env / "bin").mkdir(parents=True)
    (env / "bin" / "python").symlink_to(sys.executable)
    cuda = setup_env.cuda_tools_present()
    stamp = setup_env.fingerprint(str(checkout), "openmmlab", sys.version_info, cuda)
    (env / "setup.stamp").write_text(stamp + "\n")
    return env


def test_a_finished_environment_is_left_alone(setup_env, checkout, monkeypatch):
    make_finished_env(setup_env, checkout)
    monkeypatch.setattr(setup_env, "ROOT", str(checkout))
    monkeypatch.setattr(setup_env, "check_machine", lambda env: pytest.fail("checked"))
    monkeypatch.setattr(setup_env, "install", lambda env, stack: pytest.fail("installed"))
    assert setup_env.main([]) == 0


def test_the_stamp_is_gone_during_a_run_and_written_after_it(setup_env, checkout, monkeypatch):
    stamp = make_finished_env(setup_env, checkout) / "setup.stamp"
    (checkout / "setup.py").write_text("# changed\n")
    monkeypatch.setattr(setup_env, "ROOT", str(checkout))
    monkeypatch.setattr(setup_env, "check_machine", lambda env: None)

    def interrupted(env: str, stack: str) -> None:
        assert not stamp.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(setup_env, "install", interrupted)
    assert setup_env.main([]) == 130
    assert not stamp.exists()

    monkeypatch.setattr(setup_env, "install", lambda env, stack: None)
    assert setup_env.main([]) == 0
    monkeypatch.setattr(setup_env, "install", lambda env, stack: pytest.fail("installed again"))
    assert setup_env.main([]) == 0


def test_a_second_set_up_waits_for_the_first_and_finds_its_work(setup_env, checkout, monkeypatch):
    env = make_finished_env(setup_env, checkout)
    finished = (env / "setup.stamp").rename(env / "stamp.of.the.first")
    monkeypatch.setattr(setup_env, "ROOT", str(checkout))
    monkeypatch.setattr(setup_env, "install", lambda env, stack: pytest.fail("installed"))
    real_flock = setup_env.fcntl.flock
    asked = []

    def flock(file, operation: int) -> None:
        asked.append(operation)
        if operation & setup_env.fcntl.LOCK_NB:
            raise BlockingIOError("held by the first")
        finished.rename(env / "setup.stamp")
        real_flock(file, operation)

    monkeypatch.setattr(setup_env.fcntl, "flock", flock)
    assert setup_env.main([]) == 0
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  [12/78] c++ -MMD -MF build/nms.o -std=c++17\n", (12, 78)),
        ("[1/3] /usr/bin/nvcc --generate-dependencies", (1, 3)),
        ("  building 'mmcv._ext' extension\n", None),
        ("Collecting torch==2.11.0", None),
        ("  progress [12/78] of something", None),
    ],
)
def test_ninja_progress(setup_env, line, expected):
    assert setup_env.ninja_progress(line) == expected


def test_without_a_terminal_the_line_grows_by_every_tenth_file(setup_env):
    stream = io.StringIO()
    line = setup_env.StepLine("[4] OpenMMLab", stream)
    for done in range(1, 24):
        line.feed(f"  [{done}/23] c++ -c file{done}.cpp\n")
    line.end()
    assert stream.getvalue() == "[4] OpenMMLab ... 10/23 20/23 23/23 done in 0 s\n"


def test_on_a_terminal_every_file_redraws_the_line(setup_env, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    line = setup_env.StepLine("[4] OpenMMLab", stream)
    line.feed("  [12/78] c++ -c nms.cpp\n")
    assert stream.getvalue().endswith("\r\x1b[K[4] OpenMMLab ... compiling mmcv 12/78")


def test_a_failing_step_shows_the_end_of_its_output(setup_env, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(setup_env, "ROOT", str(tmp_path))
    installer = setup_env.Installer(str(tmp_path), "openmmlab")
    code = "for i in range(100): print('line', i)\nraise SystemExit(3)"
    with pytest.raises(setup_env.SetupError) as raised:
        installer.run("a step", sys.executable, "-c", code)
    message = str(raised.value)
    assert "a step failed" in message
    assert "line 99" in message and "line 75" in message and "line 74" not in message
    assert installer.log_path in message
    assert "line 0\n" in Path(installer.log_path).read_text()
    assert "failed in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answers", "expected_pip_calls", "fails"),
    [
        (["not available"], 1, False),
        ([None, "not available"], 2, False),
        ([None, None], 2, True),
    ],
)
def test_an_mmcv_whose_ops_do_not_load_is_compiled_afresh_once(
    setup_env, monkeypatch, tmp_path, answers, expected_pip_calls, fails
):
    calls = []
    remaining = iter(answers)
    monkeypatch.setattr(setup_env, "cuda_tools_present", lambda: False)
    installer = setup_env.Installer(str(tmp_path), "openmmlab")
    monkeypatch.setattr(installer, "pip", lambda title, *arguments: calls.append(arguments))
    monkeypatch.setattr(installer, "answer", lambda code: next(remaining))
    if fails:
        with pytest.raises(setup_env.SetupError, match="ops do not load"):
            setup_env.install_openmmlab(installer)
    else:
        setup_env.install_openmmlab(installer)
    assert len(calls) == expected_pip_calls
    assert all("--no-build-isolation" in call for call in calls)
    if expected_pip_calls == 2:
        assert {"--no-cache-dir", "--force-reinstall", "--no-deps"} <= set(calls[1])
        assert calls[1][-1].startswith("onedl-mmcv==")


def test_cuda_ops_need_a_gpu_and_the_compiler_of_torchs_cuda(setup_env):
    nvcc = "Cuda compilation tools, release 13.0, V13.0.88"
    assert setup_env.cuda_plan(True, "13.0", nvcc) == (True, "")
    assert setup_env.cuda_plan(True, "13.2", nvcc) == (True, "")
    assert setup_env.cuda_plan(False, "13.0", nvcc)[0] is False
    assert setup_env.cuda_plan(True, "13.0", "")[0] is False
    wanted, reason = setup_env.cuda_plan(True, "12.8", nvcc)
    assert not wanted
    assert "13.0" in reason and "12.8" in reason


def test_a_cached_cpu_mmcv_is_refused_on_a_gpu_machine(setup_env, monkeypatch, tmp_path):
    installer = setup_env.Installer(str(tmp_path), "openmmlab")
    monkeypatch.setattr(installer, "answer", lambda code: "not available")
    assert setup_env.mmcv_problem(installer, with_cuda=False) is None
    assert setup_env.mmcv_problem(installer, with_cuda=True) == "it has no CUDA ops"
    monkeypatch.setattr(installer, "answer", lambda code: "13.0")
    assert setup_env.mmcv_problem(installer, with_cuda=True) is None


def test_compilers_fit_into_memory(setup_env):
    assert setup_env.compile_jobs(cores=16, free_memory_gb=8.5) == 4
    assert setup_env.compile_jobs(cores=2, free_memory_gb=64) == 2
    assert setup_env.compile_jobs(cores=4, free_memory_gb=0.5) == 1


def test_each_stack_pins_one_mmcv(setup_env):
    assert setup_env.mmcv_requirement("openmmlab").startswith("onedl-mmcv==")
    assert setup_env.mmcv_requirement("classic").startswith("mmcv==")


def environ_outside_make() -> dict[str, str]:
    """The environment without what `make test` hands down, its choice of interpreter included."""
    handed_down = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHON", "STACK", "ARGS"}
    return {key: value for key, value in os.environ.items() if key not in handed_down}


def test_make_passes_over_an_interpreter_that_exists_and_fails(tmp_path):
    """The shims of pyenv exist for versions that are not selected, and exit non-zero."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name, script in [
        ("python3", "#!/bin/sh\nexit 127\n"),
        ("python3.11", "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"),
        ("python3.12", '#!/bin/sh\ncase "$1" in -c) exit 0;; *) echo "chosen: $*";; esac\n'),
    ]:
        (bin_dir / name).write_text(script)
        (bin_dir / name).chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    environ = dict(environ_outside_make(), PATH=f"{bin_dir}:/usr/bin:/bin")
    result = subprocess.run(
        ["make", "setup"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "chosen: tools/setup_env.py --stack openmmlab"


def test_make_names_an_interpreter_that_cannot_run(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    result = subprocess.run(
        ["make", "-s", "setup", "PYTHON=/no/such/python"],
        cwd=tmp_path,
        env=environ_outside_make(),
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    line = result.stderr.splitlines()[0]
    assert line.startswith("set-up: cannot run /no/such/python")
    assert "apt-get install python3" in line
