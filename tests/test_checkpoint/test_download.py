"""Downloads from a server on this machine: what is checked, kept, refused and left undone."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from mmconvnextv2.checkpoint import ChecksumMismatch, fetch_checkpoint, sha256_of

pytestmark = pytest.mark.unit

CONTENT = bytes(range(256)) * 20000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


class Server:
    """Files by path, served over HTTP; counts the requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_bytes = 0
        self.requests: list[str] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.requests.append(self.path)
                content = served.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - served.cut_bytes])

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_without_a_known_hash_it_is_printed_and_kept_and_a_difference_refused(
    server, tmp_path, capsys
):
    server.files["/a.pth"] = CONTENT
    url = f"{server.url}/a.pth"
    file = fetch_checkpoint(url, cache_dir=tmp_path)
    assert (file.name, file.read_bytes()) == ("a.pth", CONTENT)
    assert f"no sha256 is known; it is {DIGEST}" in capsys.readouterr().err
    assert kept(tmp_path) == ["a.pth", "a.pth.sha256"]
    assert file.with_name("a.pth.sha256").read_text() == f"{DIGEST}  a.pth\n"

    assert fetch_checkpoint(url, cache_dir=tmp_path) == file
    assert server.requests == ["/a.pth"], "what is there is not downloaded again"
    assert capsys.readouterr().err == ""

    file.unlink()
    server.files["/a.pth"] = b"other"
    with pytest.raises(ChecksumMismatch, match=f"{OTHER}, {DIGEST} is expected"):
        fetch_checkpoint(url, cache_dir=tmp_path)
    assert kept(tmp_path) == ["a.pth.sha256"]
    server.files["/a.pth"] = CONTENT
    assert fetch_checkpoint(url, cache_dir=tmp_path).read_bytes() == CONTENT

    file.write_bytes(CONTENT[:-1])
    with pytest.raises(ChecksumMismatch, match=r"a\.pth, kept from http"):
        fetch_checkpoint(url, cache_dir=tmp_path)


def test_a_hash_in_the_name_is_checked(server, tmp_path, capsys):
    right, wrong = f"/net-{DIGEST[:8]}.pth", f"/net-{OTHER[:12]}.pth"
    server.files = {right: CONTENT, wrong: CONTENT, "/net_20230104.pth": CONTENT}
    fetch_checkpoint(server.url + right, cache_dir=tmp_path)
    with pytest.raises(ChecksumMismatch, match=f"{DIGEST}, {OTHER[:12]} is expected"):
        fetch_checkpoint(server.url + wrong, cache_dir=tmp_path)
    assert kept(tmp_path) == [right[1:]]
    assert "no sha256" not in capsys.readouterr().err
    server.files["/net-20230104.pth"] = CONTENT
    fetch_checkpoint(f"{server.url}/net-20230104.pth", cache_dir=tmp_path)
    assert "no sha256 is known" in capsys.readouterr().err, "a date is no hash"


def test_a_given_hash_is_checked(server, tmp_path):
    server.files["/a.pth"] = CONTENT
    url = f"{server.url}/a.pth"
    with pytest.raises(ChecksumMismatch):
        fetch_checkpoint(url, OTHER, tmp_path)
    assert kept(tmp_path) == []
    assert fetch_checkpoint(url, DIGEST.upper(), tmp_path).is_file()
    assert fetch_checkpoint(url, DIGEST[:10], tmp_path).is_file()
    with pytest.raises(ChecksumMismatch):
        fetch_checkpoint(url, OTHER[:8], tmp_path)
    for malformed in ("abc", "x" * 64, ""):
        with pytest.raises(ValueError, match="8 to 64 hex digits"):
            fetch_checkpoint(url, malformed, tmp_path)


def test_files_of_the_same_name_do_not_meet(server, tmp_path):
    server.files = {"/one/model.pth": b"one", "/two/model.pth": b"two", "/model.pth?v=2": b"2"}
    files = [fetch_checkpoint(server.url + path, cache_dir=tmp_path) for path in server.files]
    assert [file.read_bytes() for file in files] == [b"one", b"two", b"2"]
    assert {file.name for file in files} == {"model.pth"}


def test_a_broken_download_leaves_nothing(server, tmp_path):
    server.files["/a.pth"] = CONTENT
    server.cut_bytes = 1000
    with pytest.raises(OSError, match=f"{len(CONTENT) - 1000} of {len(CONTENT)} bytes arrived"):
        fetch_checkpoint(f"{server.url}/a.pth", cache_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        fetch_checkpoint(f"{server.url}/none.pth", cache_dir=tmp_path)
    server.server.server_close()
    for path in ("", "/", "/.."):
        with pytest.raises(ValueError, match="names no file"):
            fetch_checkpoint(f"{server.url}{path}", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="allowed are https, http, file and hf://"):
        fetch_checkpoint("ftp://example.org/a.pth", cache_dir=tmp_path)
    assert kept(tmp_path) == []


def test_file_urls_and_local_files(tmp_path):
    file, cache = tmp_path / "a.pth", tmp_path / "cache"
    file.write_bytes(CONTENT)
    assert fetch_checkpoint(file.as_uri(), cache_dir=cache).read_bytes() == CONTENT
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fetch_checkpoint((tmp_path / "none.pth").as_uri(), cache_dir=cache)
    assert sha256_of(file) == DIGEST
    assert fetch_checkpoint(file) == file == fetch_checkpoint(str(file), DIGEST)
    with pytest.raises(ChecksumMismatch):
        fetch_checkpoint(file, OTHER)
    renamed = file.rename(tmp_path / f"a-{OTHER[:8]}.pth")
    with pytest.raises(ChecksumMismatch, match=f"{OTHER[:8]} is expected"):
        fetch_checkpoint(renamed)
    with pytest.raises(FileNotFoundError, match="is a folder"):
        fetch_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fetch_checkpoint(tmp_path / "none.pth")


@pytest.fixture
def hub(monkeypatch, tmp_path) -> dict:
    """A hub that stores files as huggingface_hub does: a link to a blob named by its hash."""
    state: dict = dict(calls=[], content=CONTENT, blob=DIGEST, error=None)

    class HfHubHTTPError(OSError):
        pass

    def hf_hub_download(repo: str, name: str, revision: str | None = None) -> str:
        state["calls"].append((repo, name, revision))
        if state["error"]:
            raise HfHubHTTPError(state["error"])
        blob = tmp_path / "blobs" / state["blob"]
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(state["content"])
        link = tmp_path / "snapshots" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
        return str(link)

    module, utils = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.utils")
    module.hf_hub_download, utils.HfHubHTTPError = hf_hub_download, HfHubHTTPError
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    return state


def test_hub_ids(hub, tmp_path, capsys):
    cache = tmp_path / "cache"
    repo = "timm/convnextv2_atto.fcmae_ft_in1k"
    assert fetch_checkpoint(f"hf://{repo}", cache_dir=cache).read_bytes() == CONTENT
    fetch_checkpoint(f"hf://{repo}@v1.0/sub/a.pth", cache_dir=cache)
    assert hub["calls"] == [(repo, "model.safetensors", None), (repo, "sub/a.pth", "v1.0")]
    assert capsys.readouterr().err == "" and not cache.exists(), "the hub knows the hash"
    with pytest.raises(ChecksumMismatch):
        fetch_checkpoint(f"hf://{repo}", OTHER, cache)
    hub["content"] = CONTENT[:-1]
    with pytest.raises(ChecksumMismatch):
        fetch_checkpoint(f"hf://{repo}", cache_dir=cache)

    hub.update(content=CONTENT, blob=DIGEST[:40])
    fetch_checkpoint(f"hf://{repo}", cache_dir=cache)
    assert f"no sha256 is known; it is {DIGEST}" in capsys.readouterr().err
    hub["content"] = b"other"
    with pytest.raises(ChecksumMismatch, match=f"{DIGEST} is expected"):
        fetch_checkpoint(f"hf://{repo}", cache_dir=cache)

    hub["error"] = "404 Client Error\nmore"
    with pytest.raises(OSError, match="cannot be downloaded: 404 Client Error$"):
        fetch_checkpoint(f"hf://{repo}")
    with pytest.raises(ValueError, match="write hf://org/name"):
        fetch_checkpoint("hf://atto")


def test_the_hubs_library_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        fetch_checkpoint("hf://timm/convnextv2_atto.fcmae")


def test_the_hubs_library_has_what_is_used_of_it():
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    from huggingface_hub.utils import HfHubHTTPError

    assert callable(hub.hf_hub_download) and issubclass(HfHubHTTPError, OSError)
