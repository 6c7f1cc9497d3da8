"""Make the environment of one stack, or return at once when nothing has changed.

The Makefile runs ``python tools/setup_env.py --stack openmmlab`` (into .venv) or with
``--stack classic`` (into .venv-classic). The file needs the standard library alone and keeps to
syntax that Python 3.6 parses, so that an interpreter that is too old or too new can say so itself.
"""

import argparse
import ctypes.util
import fcntl
import glob
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from typing import IO, List, Optional, Sequence, Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENV_OF_STACK = {"openmmlab": ".venv", "classic": ".venv-classic"}
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 12)
FREE_GB_NEEDED = 12  # torch with its CUDA libraries takes 5, pip's downloads and the build the rest
GB_PER_COMPILER = 2
LOG_LINES_SHOWN = 25


class SetupError(Exception):
    """The set-up cannot go on; the message says why and what to do, in one line."""


# What the machine has to bring.


def python_problem(version: Sequence[int], executable: str) -> Optional[str]:
    """One line that says why this interpreter cannot be used, or None if it can."""
    if OLDEST_PYTHON <= tuple(version[:2]) <= NEWEST_PYTHON:
        return None
    return (
        "needs Python 3.10, 3.11 or 3.12, but {} is Python {}: install one of these (Debian: "
        "apt-get install python3 python3-venv python3-dev) or name one: make PYTHON=/path/to/python"
    ).format(executable, ".".join(str(part) for part in version[:3]))


def runs(command: str) -> bool:
    """Whether the command exists and answers ``--version``."""
    try:
        subprocess.check_output(shlex.split(command) + ["--version"], stderr=subprocess.STDOUT)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def missing_parts() -> List[Tuple[str, str]]:
    """Pairs (what is missing, the Debian package that brings it)."""
    python = "python{}.{}".format(*sys.version_info[:2])
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    present = {
        ("a C++ compiler (g++)", "g++"): runs(os.environ.get("CXX", "g++")),
        ("a C compiler (gcc)", "gcc"): runs(os.environ.get("CC", "gcc")),
        ("Python.h", python + "-dev"): os.path.exists(header),
        ("Python's venv module", python + "-venv"): bool(importlib.util.find_spec("ensurepip")),
        ("libGL.so.1 (for OpenCV)", "libgl1"): bool(ctypes.util.find_library("GL")),
        ("libglib-2.0.so.0 (for OpenCV)", "libglib2.0-0"): bool(
            ctypes.util.find_library("glib-2.0")
        ),
    }
    return [part for part, found in present.items() if not found]


def check_machine(env: str) -> None:
    """Raise a SetupError that names everything the machine lacks, before anything is installed."""
    missing = missing_parts()
    if missing:
        raise SetupError(
            "this machine lacks {}: apt-get install {}".format(
                ", ".join(what for what, _ in missing), " ".join(package for _, package in missing)
            )
        )
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    has_torch = bool(glob.glob(os.path.join(env, "lib", "python3*", "site-packages", "torch")))
    if free_gb < FREE_GB_NEEDED and not has_torch:
        raise SetupError(
            "{:.1f} GB are free in {}, {} GB are needed: make room or move the checkout".format(
                free_gb, ROOT, FREE_GB_NEEDED
            )
        )


def compile_jobs(cores: int, free_memory_gb: float) -> int:
    """How many compilers may run at once without running out of memory."""
    return max(1, min(cores, int(free_memory_gb // GB_PER_COMPILER)))


def free_memory_gb() -> float:
    """Memory that a new process can have, in GB, as Linux estimates it."""
    with open("/proc/meminfo") as meminfo:
        kilobytes = dict(line.split(":", 1) for line in meminfo)["MemAvailable"]
    return int(kilobytes.split()[0]) / 1e6


# Whether there is anything to do.


def cuda_tools_present() -> bool:
    """Whether the machine has an NVIDIA GPU and the compiler for it; a look at files, no more."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or os.path.exists(os.path.join(home, "bin", "nvcc"))
    return bool(glob.glob("/dev/nvidia[0-9]*")) and bool(nvcc)


def fingerprint(root: str, stack: str, python: Sequence[int], cuda: bool) -> str:
    """Hash of everything that the content of the environment depends on."""
    digest = hashlib.sha256(repr((root, stack, tuple(python[:3]), cuda)).encode())
    groups = ["build", "runtime", "tests", "domains", stack]
    files = ["requirements/{}.txt".format(group) for group in groups]
    for name in files + ["setup.py", "pyproject.toml", "tools/setup_env.py"]:
        with open(os.path.join(root, name), "rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.sha256(file.read()).digest())
    return digest.hexdigest()


def is_current(env: str, wanted: str) -> bool:
    """Whether the environment was finished for this very fingerprint."""
    stamp = os.path.join(env, "setup.stamp")
    if not os.path.exists(stamp) or not os.path.exists(os.path.join(env, "bin", "python")):
        return False
    with open(stamp) as file:
        return file.read().strip() == wanted


# Showing what goes on.

NINJA_LINE = re.compile(r"^\s*\[(\d+)/(\d+)\] ")
PIP_LINE = re.compile(r"^\s*((?:Downloading|Building wheel for|Installing collected) \S+)")


def ninja_progress(line: str) -> Optional[Tuple[int, int]]:
    """(files done, files in all) of a line of ninja's output, None for any other line."""
    found = NINJA_LINE.match(line)
    return (int(found.group(1)), int(found.group(2))) if found else None


class StepLine:
    """One console line per step: title, what goes on in it, the time it took.

    On a terminal the line is redrawn as things happen; elsewhere it grows by every tenth file.
    """

    def __init__(self, title: str, stream: IO[str]) -> None:
        self.title, self.stream, self.start = title, stream, time.monotonic()
        self.live = stream.isatty()
        self._draw("") if self.live else self._write(title + " ...")

    def feed(self, line: str) -> None:
        """Show the progress that a line of the step's output tells of, if it does."""
        files = ninja_progress(line)
        if self.live:
            pip = PIP_LINE.match(line)
            if files:
                self._draw("compiling mmcv {}/{}".format(*files))
            elif pip:
                self._draw(pip.group(1))
        elif files and (files[0] % 10 == 0 or files[0] == files[1]):
            self._write(" {}/{}".format(*files))

    def end(self, word: str = "done") -> None:
        """Close the line with a word and the time taken."""
        ending = "{} in {:.0f} s\n".format(word, time.monotonic() - self.start)
        self._draw(ending) if self.live else self._write(" " + ending)

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns
        line = "{} ... {}".format(self.title, text)
        self._write("\r\x1b[K" + (line if text.endswith("\n") else line[: width - 1]))

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


# The steps.


class Installer:
    """Runs the steps in one environment and writes their full output to its setup.log."""

    def __init__(self, env: str, stack: str) -> None:
        self.env, self.stack = env, stack
        self.python = os.path.join(env, "bin", "python")
        self.log_path = os.path.join(env, "setup.log")
        self.steps_done = 0
        self.environ = dict(os.environ, PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
        self.environ.setdefault("MAX_JOBS", str(compile_jobs(core_count(), free_memory_gb())))

    def run(self, title: str, *command: str) -> None:
        """Run one command under one console line.

        Raises:
            SetupError: if it fails, with the end of its output.
        """
        self.steps_done += 1
        line = StepLine("[{}] {}".format(self.steps_done, title), sys.stdout)
        if self._logged(command, line) == 0:
            line.end()
            return
        line.end("failed")
        with open(self.log_path, errors="replace") as log:
            tail = [text.rstrip()[:300] for text in log.readlines()[-LOG_LINES_SHOWN:]]
        raise SetupError(
            "{} failed:\n{}\nall of it: {}".format(title, "\n".join(tail), self.log_path)
        )

    def pip(self, title: str, *arguments: str) -> None:
        """``pip install`` in the environment; verbose, since progress is read from its output."""
        self.run(title, self.python, "-m", "pip", "install", "-v", *arguments)

    def answer(self, code: str) -> Optional[str]:
        """What the environment's Python prints last for a piece of code, None if it raises."""
        result = subprocess.run(
            [self.python, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            cwd=self.env,
            env=self.environ,
        )
        with open(self.log_path, "a") as log:
            log.write("$ python -c {!r}\n{}{}".format(code, result.stdout, result.stderr))
        lines = result.stdout.split("\n")
        return lines[-2] if result.returncode == 0 and len(lines) > 1 else None

    def _logged(self, command: Sequence[str], line: StepLine) -> int:
        with open(self.log_path, "a") as log:
            log.write("$ {}\n".format(" ".join(command)))
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                universal_newlines=True,
                errors="replace",
                cwd=ROOT,
                env=self.environ,
            )
            try:
                for text in process.stdout or ():
                    log.write(text)
                    line.feed(text)
                return process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def requirements_file(group: str) -> str:
    """Path of a requirements file, relative to the checkout."""
    return "requirements/{}.txt".format(group)


def mmcv_requirement(stack: str) -> str:
    """The stack's pinned mmcv, e.g. ``onedl-mmcv==2.3.6``."""
    with open(os.path.join(ROOT, requirements_file(stack))) as file:
        return next(line.strip() for line in file if re.match(r"(onedl-)?mmcv==", line))


def make_venv(installer: Installer) -> None:
    """Leave a virtual environment of this very Python version, keeping one that already is."""
    env = installer.env
    version = "{}.{}".format(*sys.version_info[:2])
    code = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    os.makedirs(env, exist_ok=True)
    open(installer.log_path, "w").close()
    if os.path.exists(installer.python) and installer.answer(code) == version:
        return
    shutil.rmtree(env)
    os.makedirs(env)
    name = os.path.basename(env)
    installer.run("{} with Python {}".format(name, version), sys.executable, "-m", "venv", env)


def cuda_plan(gpu_usable: bool, torch_cuda: str, nvcc_output: str) -> Tuple[bool, str]:
    """Whether mmcv can get its CUDA ops, and why not.

    Args:
        gpu_usable: what torch.cuda.is_available() says in the environment.
        torch_cuda: CUDA version torch was built with, e.g. "13.0".
        nvcc_output: output of ``nvcc --version``, empty without nvcc.
    """
    found = re.search(r"release (\d+)\.(\d+)", nvcc_output)
    if not gpu_usable or not found:
        return False, "no usable GPU or no nvcc"
    if found.group(1) != torch_cuda.split(".")[0]:
        mismatch = "nvcc is of CUDA {}.{}, torch of CUDA {}: install a toolkit of torch's version"
        return False, mismatch.format(found.group(1), found.group(2), torch_cuda)
    return True, ""


def wants_cuda_ops(installer: Installer) -> bool:
    """Ask torch whether GPU and nvcc fit, and say so where a GPU machine gets CPU ops only."""
    if not cuda_tools_present():
        return False
    answer = installer.answer(
        "import json, os, subprocess, torch\n"
        "from torch.utils.cpp_extension import CUDA_HOME\n"
        "nvcc, said = os.path.join(CUDA_HOME or '', 'bin', 'nvcc'), ''\n"
        "if os.path.exists(nvcc):\n"
        "    said = subprocess.check_output([nvcc, '--version']).decode()\n"
        "print(json.dumps([torch.cuda.is_available(), str(torch.version.cuda), said]))"
    )
    if answer is None:
        raise SetupError("torch does not load: see {}".format(installer.log_path))
    wanted, reason = cuda_plan(*json.loads(answer))
    if not wanted:
        print("mmcv gets no CUDA ops: " + reason)
    return wanted


def mmcv_problem(installer: Installer, with_cuda: bool) -> Optional[str]:
    """Why the installed mmcv will not do, or None if it will."""
    compiled_for = installer.answer(
        "from mmcv.ops import get_compiling_cuda_version\nprint(get_compiling_cuda_version())"
    )
    if compiled_for is None:
        return "its ops do not load"
    if with_cuda and not re.match(r"\d", compiled_for):
        return "it has no CUDA ops"
    return None


def install_openmmlab(installer: Installer) -> None:
    """Install the stack and check mmcv's compiled part.

    pip keeps the wheel it compiled under the name of the source package alone, so the cached one
    may belong to another torch or lack the CUDA ops; then mmcv is compiled afresh, once.
    """
    with_cuda = wants_cuda_ops(installer)
    installer.environ["MMCV_WITH_OPS"] = "1"
    installer.environ["FORCE_CUDA"] = "1" if with_cuda else "0"
    if not with_cuda:
        installer.environ["CUDA_VISIBLE_DEVICES"] = ""  # or mmcv's build would look for nvcc
    title = "OpenMMLab (mmcv compiles for ~11 minutes, once)"
    installer.pip(title, "--no-build-isolation", "-r", requirements_file(installer.stack))

    problem = mmcv_problem(installer, with_cuda)
    if problem:
        afresh = ["--no-build-isolation", "--no-cache-dir", "--force-reinstall", "--no-deps"]
        title = "mmcv again, from source, because {}".format(problem)
        installer.pip(title, *afresh, mmcv_requirement(installer.stack))
        problem = mmcv_problem(installer, with_cuda)
    if problem:
        raise SetupError("mmcv was compiled but {}: see {}".format(problem, installer.log_path))


def install(env: str, stack: str) -> None:
    """All steps, in order; each one is quick when its work is already there."""
    installer = Installer(env, stack)
    pins = ["-c", requirements_file(stack)]
    make_venv(installer)
    installer.pip("pip", "--upgrade", "pip>=24,<27")
    installer.pip("torch and what builds need", "-r", requirements_file("build"), *pins)
    install_openmmlab(installer)
    project = ["--no-build-isolation", "-e", ".", "-r", requirements_file("tests")]
    installer.pip("mmconvnextv2 and its tests' tools", *project, *pins)
    # Read as files: what these packages would import is not needed.
    installer.pip(
        "readers of medical and satellite images", "--no-deps", "-r", requirements_file("domains")
    )


def set_up(stack: str) -> None:
    """Bring the environment of a stack up to date.

    Raises:
        SetupError: if the interpreter or the machine will not do, or a step fails.
    """
    problem = python_problem(sys.version_info, sys.executable)
    if problem:
        raise SetupError(problem)
    env = os.path.join(ROOT, ENV_OF_STACK[stack])
    wanted = fingerprint(ROOT, stack, sys.version_info, cuda_tools_present())
    if is_current(env, wanted):
        return
    with open(os.path.join(ROOT, requirements_file(stack))) as lock:
        wait_for(lock)
        if is_current(env, wanted):
            return
        check_machine(env)
        stamp = os.path.join(env, "setup.stamp")
        if os.path.exists(stamp):
            os.remove(stamp)
        print("setting up {} (log: {})".format(env, os.path.join(env, "setup.log")))
        install(env, stack)
        with open(stamp + ".new", "w") as file:
            file.write(wanted + "\n")
        os.replace(stamp + ".new", stamp)
        print("ready; to use it in a terminal: source {}/bin/activate".format(os.path.relpath(env)))


def wait_for(lock: IO[str]) -> None:
    """Lock a file of the checkout against another set-up of the same environment."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("another set-up is at work in this environment: waiting for it", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Exit status: 0 when the environment is ready, 1 when it is not, 130 when interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stack", choices=sorted(ENV_OF_STACK), default="openmmlab")
    stack = parser.parse_args(arguments).stack
    try:
        set_up(stack)
    except SetupError as error:
        print("set-up: {}".format(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted: run make again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
