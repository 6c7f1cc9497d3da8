"""The progress bar, as a terminal shows it: real pseudo terminals, read by a small emulator."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmconvnextv2.engine.hooks.progress import ProgressHook

pytestmark = pytest.mark.integration

pty = pytest.importorskip("pty", reason="pseudo terminals exist on POSIX systems only")

TRAINING = """
import sys
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmconvnextv2.engine.hooks import progress

progress._SECONDS_BETWEEN_REFRESHES = 0.0  # every step is drawn, however fast the machine
FAIL_AT, WORK_DIR = int(sys.argv[1]), sys.argv[2]


class Points(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return dict(inputs=torch.ones(4))


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
        self.calls = 0

    def forward(self, inputs, mode="tensor"):
        self.calls += 1
        if self.calls == 3:
            print("a printed line")
        if self.calls == FAIL_AT:
            raise RuntimeError("the step failed")
        return dict(loss=self.linear(inputs).square().mean())


runner = Runner(
    model=Model(),
    work_dir=WORK_DIR,
    train_dataloader=dict(
        dataset=Points(), batch_size=4, num_workers=1, collate_fn=dict(type="default_collate"),
        sampler=dict(type="DefaultSampler"),
    ),
    train_cfg=dict(by_epoch=True, max_epochs=2),
    optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01)),
    default_hooks=dict(logger=dict(type="LoggerHook", interval=5), checkpoint=None),
    custom_hooks=[dict(type="ProgressHook")],
)
runner.train()
print("after training")
"""


class Screen:
    """The lines that a terminal would show; knows what rich sends and nothing else."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.cursor_visible = True
        self.bars: list[str] = []

    def feed(self, text: str) -> Screen:
        for code in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
            self._control(code) if code[0] in "\x1b\r\n" else self._write(code)
        return self

    def _write(self, text: str) -> None:
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + text + line[self.column + len(text) :]
        self.column += len(text)
        if re.search(r"\d/\d+ .* left", self.lines[self.row]):
            self.bars.append(self.lines[self.row])

    def _control(self, code: str) -> None:
        if code == "\r":
            self.column = 0
        elif code == "\n":
            self.row, self.column = self.row + 1, 0
            self.lines += [""] * (self.row == len(self.lines))
        elif code == "\x1b[2K":
            self.lines[self.row] = ""
        elif code.endswith("A"):
            self.row -= int(code[2:-1] or 1)
        elif code in ("\x1b[?25l", "\x1b[?25h"):
            self.cursor_visible = code.endswith("h")
        else:
            assert code.endswith("m"), f"unknown control code {code!r}"


def run_in_terminal(tmp_path, fail_at: int = 0) -> tuple[Screen, int]:
    """Run the training script with a pseudo terminal of 200 columns as all its streams."""
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    master, slave = pty.openpty()
    screen = {"COLUMNS": "200", "LINES": "40", "TERM": "xterm"}
    environment = {**os.environ, **screen, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, str(script), str(fail_at), str(tmp_path / "work")],
        stdin=slave, stdout=slave, stderr=slave, env=environment,
    )  # fmt: skip
    os.close(slave)
    chunks = []
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux: the last process on the other side has gone
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(master)
    return Screen().feed(b"".join(chunks).decode()), process.wait()


def test_a_terminal_shows_a_bar_below_intact_log_lines_and_nothing_of_it_in_the_end(
    tmp_path,
) -> None:
    screen, code = run_in_terminal(tmp_path)
    assert code == 0 and screen.cursor_visible
    last = screen.bars[-1]
    assert re.search(r"^epoch 2/2 .*20/20 +loss \d\.\d{4}  lr 1\.0e-02  \d+ img/s .*left", last)
    assert any(bar.startswith("epoch 1/2") for bar in screen.bars)
    assert not any("img/s" in line for line in screen.lines), "the bar is still there"
    for epoch in (1, 2):
        for step in (5, 10):
            pattern = rf"INFO - Epoch\(train\) +\[{epoch}\]\[ ?{step}/10\].*loss: \d\.\d{{4}} *$"
            assert sum(bool(re.search(pattern, line)) for line in screen.lines) == 1
    assert "a printed line" in screen.lines
    assert [line for line in screen.lines if line][-1] == "after training"


def test_a_failure_leaves_the_terminal_in_order_and_the_traceback_readable(tmp_path) -> None:
    screen, code = run_in_terminal(tmp_path, fail_at=8)
    assert code == 1 and screen.cursor_visible
    assert any("img/s" in bar for bar in screen.bars)
    assert not any("img/s" in line for line in screen.lines), "the bar is still there"
    assert "Traceback (most recent call last):" in screen.lines
    assert [line for line in screen.lines if line][-1] == "RuntimeError: the step failed"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_runner(max_epochs: int | None = 1, done: int = 0) -> SimpleNamespace:
    logger = logging.Logger("progress")
    logger.addHandler(logging.StreamHandler(sys.stdout))
    return SimpleNamespace(
        iter=done, max_iters=100, epoch=0, max_epochs=max_epochs, logger=logger,
        message_hub=SimpleNamespace(log_scalars={}),
    )  # fmt: skip


@pytest.fixture
def open_terminal(monkeypatch) -> Callable[[], Terminal]:
    """Puts a terminal in the place of stdout; pytest would undo it between fixture and test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)

    def open_it() -> Terminal:
        monkeypatch.setattr(sys, "stdout", Terminal())
        return sys.stdout

    return open_it


def test_a_resumed_run_by_iterations_starts_where_it_was(open_terminal: Callable) -> None:
    terminal = open_terminal()
    runner = make_runner(done=39)
    runner.message_hub.log_scalars = {
        "train/loss": HistoryBuffer([9.0] + [0.25, 0.75] * 10, [1] * 21),
        "train/base_lr": HistoryBuffer([2e-4], [1]),
        "train/lr": HistoryBuffer([9e-9], [1]),
    }
    hook = ProgressHook()
    hook.before_train(runner)
    hook.after_train_iter(runner, 0, {"inputs": torch.zeros(4, 3)}, {})
    bar = Screen().feed(terminal.getvalue()).lines[0]
    # The mean of the last 20 losses, and the rate before the layers' own factors.
    assert bar.startswith("train ") and " 40/100 loss 0.5000  lr 2.0e-04 " in bar
    hook.after_train(runner)
    assert set(Screen().feed(terminal.getvalue()).lines) == {""}


def test_a_batch_of_an_unknown_kind_has_no_rate(open_terminal: Callable) -> None:
    terminal = open_terminal()
    runner = make_runner(max_epochs=None)
    hook = ProgressHook()
    hook.before_train(runner)
    hook._last_refresh = 0.0
    hook.after_train_iter(runner, 0, [torch.zeros(1)], {})
    hook.after_run(runner)
    assert "1/100" in terminal.getvalue() and "img/s" not in terminal.getvalue()


@pytest.mark.parametrize("end", ["after_train", "after_run", "collected", "started again"])
def test_streams_come_back(open_terminal: Callable, end: str) -> None:
    terminal = open_terminal()
    runner = make_runner()
    handler = runner.logger.handlers[0]
    hook = ProgressHook()
    hook.before_train(runner)
    assert sys.stdout is not terminal and handler.stream is sys.stdout
    if end == "collected":
        gone = weakref.ref(hook)
        del hook
        assert gone() is None
    elif end == "started again":
        hook.before_train(runner)
        hook.after_train(runner)
    else:
        getattr(hook, end)(runner)
        getattr(hook, end)(runner)
    assert sys.stdout is terminal and handler.stream is terminal


@pytest.mark.parametrize("why", ["a file", "a dumb terminal", "another rank"])
def test_the_log_is_what_it_was_where_there_is_no_bar(
    open_terminal: Callable, monkeypatch, why: str
) -> None:
    prepare: dict[str, Callable[[], None]] = {
        "a file": lambda: monkeypatch.setattr(sys, "stdout", io.StringIO()),
        "a dumb terminal": lambda: monkeypatch.setenv("TERM", "dumb"),
        "another rank": lambda: monkeypatch.setattr("mmengine.dist.utils.get_rank", lambda *_: 1),
    }
    open_terminal()
    prepare[why]()
    stdout = sys.stdout
    runner, hook = make_runner(), ProgressHook()
    hook.before_train(runner)
    assert sys.stdout is stdout and runner.logger.handlers[0].stream is stdout
    hook.after_train_iter(runner, 0, {"inputs": torch.zeros(4)}, {})
    hook.after_train(runner)
    hook.after_run(runner)
    assert stdout.getvalue() == ""


def test_a_log_file_keeps_its_stream(open_terminal: Callable, tmp_path) -> None:
    terminal = open_terminal()
    runner = make_runner()
    file_handler = logging.FileHandler(tmp_path / "run.log")
    runner.logger.addHandler(file_handler)
    hook = ProgressHook()
    hook.before_train(runner)
    runner.logger.warning("a line")
    hook.after_train(runner)
    file_handler.close()
    assert (tmp_path / "run.log").read_text() == "a line\n"
    assert Screen().feed(terminal.getvalue()).lines[0].rstrip() == "a line"
