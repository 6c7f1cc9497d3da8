"""tools/dataset_converters/pack_shards.py: its three commands, what they print and return."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.unit

TOOL = Path(__file__).parents[2] / "tools" / "dataset_converters" / "pack_shards.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("pack_shards", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(9):
        Image.effect_noise((700, 600), 50 + number).save(folder / f"{number}.png")
    return folder


def test_pack_verify_and_index(tool, source, tmp_path, capsys):
    out = tmp_path / "shards"
    assert tool.main(["pack", str(source), str(out), "--shard-size", "1"]) == 0
    num_shards = len(list(out.glob("*.tar")))
    assert 2 < num_shards < 9
    line = f"{out}: 9 images in {num_shards} shards\n"
    assert capsys.readouterr().out == line
    assert all(path.stat().st_size < 1_000_000 for path in out.glob("*.tar"))
    for path in (*out.glob("*.npy"), out / "shards.json"):
        path.unlink()
    assert tool.main(["index", str(out), "--threads", "2"]) == 0
    assert tool.main(["verify", str(out)]) == 0
    assert capsys.readouterr().out == line * 2


def test_damage_is_one_line_for_each_shard_and_a_status(tool, source, tmp_path, capsys):
    out = tmp_path / "shards"
    tool.main(["pack", str(source), str(out)])
    shard = out / "shard-000000.tar"
    broken = bytearray(shard.read_bytes())
    broken[1000] ^= 1
    shard.write_bytes(broken)
    capsys.readouterr()
    assert tool.main(["verify", str(out)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: 1 of 1 shards are damaged" in captured.err
    assert "shard-000000.tar: 1 of 9 images are not what was indexed" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "{0}/nowhere", "{0}/out"], "no image folder at"),
        (["pack", "{0}/source", "{0}/out", "--shard-size", "0"], "must be at least 1"),
        (["index", "{0}/source"], "no .tar file in"),
        (["verify", "{0}/source"], "has no shards.json"),
    ],
)
def test_what_cannot_work_is_one_error(tool, source, tmp_path, capsys, arguments, message):
    assert tool.main([argument.format(tmp_path) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert not (tmp_path / "out").exists()
