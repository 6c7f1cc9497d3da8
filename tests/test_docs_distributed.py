"""The page on several GPUs: its table and every command on it give the batch of the config."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from mmengine.config import Config

from mmconvnextv2.apis.launch import add_launch_arguments, load_config
from mmconvnextv2.engine.learning_rate import batch_terms, scale_learning_rate

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PAGE = (ROOT / "docs" / "distributed.md").read_text()
RECIPES = [path for path in CONFIGS.glob("[!_]*/*.py") if "_sample" not in path.stem]
ROWS = [
    [cell.strip().strip("`") for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and ".py" in line
]


@dataclass
class Command:
    """A command of the page: how many processes of how many machines it starts, on what."""

    comment: str
    words: list[str]
    variables: dict[str, str]

    @property
    def kind(self) -> str:
        """One of the ways to start that the page explains."""
        if self.words[0] == "torchrun" or "NNODES" in self.variables:
            return "machines"
        return "single" if self.words[0] == "python" else Path(self.words[0]).stem

    @property
    def processes(self) -> int:
        """Processes in total."""
        if self.kind == "slurm_train":
            return int(self.variables.get("GPUS", 8))
        if self.words[0] == "torchrun":
            flags = dict(word[2:].split("=") for word in self.words if "=" in word and "--" in word)
            return int(flags["nnodes"]) * int(flags["nproc_per_node"])
        if self.kind == "single":
            return 1
        return int(self.words[2]) * int(self.variables.get("NNODES", 1))

    @property
    def config_path(self) -> Path:
        """The config that is named."""
        (path,) = [word for word in self.words if word.startswith("configs/")]
        return ROOT / path

    def config(self) -> Config:
        """The config with the command's options, read as train.py reads it."""
        parser = argparse.ArgumentParser()
        parser.add_argument("config")
        parser.add_argument("--auto-scale-lr", action="store_true")
        add_launch_arguments(parser)
        place = self.words.index(str(self.config_path.relative_to(ROOT)))
        skipped = 2 if self.words[0] == "tools/dist_train.sh" else 1
        return load_config(
            parser.parse_args([str(self.config_path), *self.words[place + skipped :]])
        )


def commands() -> list[Command]:
    found, comment = [], ""
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("#"):
                comment = line
                continue
            words = shlex.split(line)
            count = next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
            variables = dict(word.split("=", 1) for word in words[:count])
            found.append(Command(comment, words[count:], variables))
    return found


COMMANDS = commands()
COMMAND_IDS = [f"{i}-{c.kind}-{c.config_path.stem}" for i, c in enumerate(COMMANDS)]


def test_the_table_has_every_recipe_once() -> None:
    counts = Counter(path for row in ROWS for path in CONFIGS.glob(row[1]))
    assert set(counts.values()) == {1}
    own_images = {path for path in RECIPES if path.stem.endswith(("_folder", "_shards"))}
    assert set(counts) == set(RECIPES) - own_images
    assert len(own_images) == 3, "anew from files, anew from shards, continued"


@pytest.mark.parametrize("row", ROWS, ids=[row[1] for row in ROWS])
def test_the_table_says_what_the_configs_say(row: list[str]) -> None:
    _, pattern, terms, batch, averaged = row
    gpus, images = map(int, terms.split(" x "))
    assert gpus * images == int(batch)
    for path in CONFIGS.glob(pattern):
        config = Config.fromfile(path)
        assert f"_{gpus}xb{images}-" in path.stem
        assert config.train_dataloader.batch_size == images
        assert config.auto_scale_lr.base_batch_size == int(batch), path.stem
        assert ("ema" in config.default_hooks) == (averaged == "yes"), path.stem


@pytest.mark.parametrize("command", COMMANDS, ids=COMMAND_IDS)
def test_a_command_keeps_the_batch_of_its_config(command: Command) -> None:
    config = command.config()
    base = config.auto_scale_lr.base_batch_size
    terms = batch_terms(config, command.processes)
    said = re.search(r": (\d+) x (\d+) x (\d+) = (\d+)$", command.comment)
    assert said, command.comment
    assert tuple(map(int, said.groups())) == (
        terms.world_size,
        terms.per_device,
        terms.accumulation,
        terms.effective,
    )
    if "--auto-scale-lr" in command.words:
        assert scale_learning_rate(config, command.processes) == terms.effective / base
    else:
        assert terms.effective == base
    if ema := config.default_hooks.get("ema"):
        assert ema.type == "EMAHook", "there is no hook whose interval could be set"
        assert ema.get("interval", 1) == terms.accumulation
    if config.train_cfg.type == "ResumableIterLoop":
        assert terms.accumulation == 1, "accumulating would leave fewer steps"


def test_a_command_sets_only_what_exists() -> None:
    """An option that is misspelt would be added to the config and do nothing."""
    added = {"optim_wrapper.accumulative_counts", "default_hooks.ema.interval"}
    for command in COMMANDS:
        shipped = Config.fromfile(command.config_path)
        options = [word.split("=")[0] for word in command.words if re.match(r"[a-z_.]+=", word)]
        for option in set(options) - added:
            node = shipped
            for key in option.split("."):
                assert key in node, option
                node = node[key]


def test_every_recipe_has_its_three_commands() -> None:
    """A row's configs share the options; one GPU's recipes need no second machine."""
    for row in ROWS:
        paths = set(CONFIGS.glob(row[1]))
        kinds = {command.kind for command in COMMANDS if command.config_path in paths}
        if row[2].startswith("1 x"):
            assert "single" in kinds, row
        else:
            assert kinds == {"dist_train", "machines", "slurm_train"}, row


def test_torchrun_is_what_the_script_runs() -> None:
    """The two ways to start on two machines that the page calls the same."""
    plain = next(command for command in COMMANDS if command.words[0] == "torchrun")
    script = next(command for command in COMMANDS if "NNODES" in command.variables)
    assert plain.config_path == script.config_path
    assert plain.processes == script.processes
    assert plain.config().optim_wrapper == script.config().optim_wrapper
    source = (ROOT / "tools" / "dist_train.sh").read_text()
    port = re.search(r"PORT:-(\d+)", source).group(1)
    assert f"--master_port={port}" in plain.words
    for word in plain.words[1:]:
        if word.startswith("--") and "=" in word and not word.startswith("--cfg"):
            assert word.split("=")[0] in source
    for variable in script.variables:
        assert f"${{{variable}:-" in source


def test_slurm_s_variables_are_the_script_s() -> None:
    source = (ROOT / "tools" / "slurm_train.sh").read_text()
    for name, default in re.findall(r"`([A-Z_]+)` \((\d+)\)", PAGE):
        assert f"{name}:-{default}" in source
    assert "SRUN_ARGS" in source


def test_auto_scaling_multiplies_by_what_the_page_says() -> None:
    (command,) = [command for command in COMMANDS if "--auto-scale-lr" in command.words]
    config = command.config()
    before = config.optim_wrapper.optimizer.lr
    scale_learning_rate(config, command.processes)
    factor = int(re.search(r"the rate is multiplied by (\d+)", PAGE).group(1))
    assert math.isclose(config.optim_wrapper.optimizer.lr, factor * before)
