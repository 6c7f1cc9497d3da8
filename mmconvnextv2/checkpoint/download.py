"""Fetch a checkpoint by path, URL or hub id, and make sure that it is the file that was meant."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import torch

from mmconvnextv2.files import replace_when_complete

SCHEMES = ("https", "http", "file")
TIMEOUT_S = 60
CHUNK_BYTES = 1 << 20

HASH_IN_NAME = re.compile(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$")
"""Beginning of the file's sha256, as OpenMMLab and torch name files; eight digits that look like a
date are none."""

HUB_ID = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")


class ChecksumMismatch(ValueError):
    """A file whose sha256 is not the one that is known."""


def fetch_checkpoint(
    location: str | os.PathLike[str],
    sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Find a local file, or download one that is named by a URL or hub id.

    The sha256 is compared with what is known of it: the argument, the end of the name
    (``-<8 or more hex digits>.pth``), or the hub's own record. Where nothing is known, the sha256
    is printed and written beside the downloaded file, ``<name>.sha256``, and a later download that
    differs is refused.

    Args:
        location: a local path; a URL of `SCHEMES`; or ``hf://org/name[@revision][/file]``, whose
            file is model.safetensors where none is named.
        sha256: the whole sha256 or its beginning, at least 8 hex digits.
        cache_dir: where downloads are kept; None for ``mmconvnextv2`` in torch's hub folder. The
            files of the Hugging Face hub are in its own cache.

    Returns:
        The local file. A URL that is there already is not downloaded again, only checked.

    Raises:
        FileNotFoundError: the local file does not exist, or the URL or hub id has none.
        ImportError: a hub id, and huggingface_hub is not installed.
        ChecksumMismatch: the sha256 is not the one known; a download is not kept.
        ValueError: the location or `sha256` is malformed.
        OSError: the download failed.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{8,64}", sha256.lower()):
        raise ValueError(f"sha256 must be 8 to 64 hex digits, got {sha256!r}")
    text = os.fspath(location)
    cache = Path(cache_dir or Path(torch.hub.get_dir()) / "mmconvnextv2")
    if text.startswith("hf://"):
        return _fetch_from_hub(text, sha256, cache)
    if "://" in text:
        return _fetch_url(text, sha256, cache)
    file = Path(text)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise FileNotFoundError(f"checkpoint {text} {what}")
    if known := sha256 or _hash_in_name(file.name):
        _check_sha256(sha256_of(file), known, text)
    return file


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Sha256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch_url(url: str, sha256: str | None, cache: Path) -> Path:
    parts = urlsplit(url)
    name = unquote(parts.path).rpartition("/")[2]
    if parts.scheme not in SCHEMES or not name or name in (".", ".."):
        raise ValueError(
            f"{url} names no file to download; allowed are {', '.join(SCHEMES)} and hf://org/name"
        )
    # Many publishers name all their files alike.
    folder = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
    file, record = folder / name, folder / f"{name}.sha256"
    known = sha256 or _hash_in_name(name)
    if file.is_file():
        _check_sha256(sha256_of(file), known or _recorded(record), f"{file}, kept from {url}")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with replace_when_complete(file) as part:
            _download(url, part, name)
            _check_sha256(sha256_of(part), known or _recorded(record), url)
    if known is None:
        _keep(record, sha256_of(file), url)
    return file


def _download(url: str, target: Path, name: str) -> None:
    from rich.console import Console
    from rich.progress import wrap_file

    console = Console(stderr=True)
    try:
        with urlopen(url, timeout=TIMEOUT_S) as response, open(target, "wb") as file:
            length = int(response.headers.get("Content-Length") or 0)
            with wrap_file(
                response, length, description=name, console=console, disable=not console.is_terminal
            ) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    file.write(chunk)
            # A connection that breaks off looks like the end of the file.
            if length and file.tell() != length:
                raise OSError(f"{url}: {file.tell()} of {length} bytes arrived; try again")
    except URLError as error:
        if getattr(error, "code", None) == 404 or isinstance(error.reason, FileNotFoundError):
            raise FileNotFoundError(f"{url} does not exist") from error
        raise OSError(f"{url} cannot be downloaded: {error.reason}") from error
    except HTTPException as error:
        raise OSError(f"{url} cannot be downloaded: {error!r}") from error


def _fetch_from_hub(text: str, sha256: str | None, cache: Path) -> Path:
    found = HUB_ID.fullmatch(text)
    if found is None:
        raise ValueError(f"{text} is no hub id: write hf://org/name[@revision][/file]")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import HfHubHTTPError
    except ImportError as error:
        raise ImportError(f"{text} needs huggingface_hub: pip install huggingface_hub") from error
    name = found["file"] or "model.safetensors"
    try:
        file = Path(hf_hub_download(found["repo"], name, revision=found["revision"]))
    except HfHubHTTPError as error:
        raise OSError(f"{text} cannot be downloaded: {str(error).splitlines()[0]}") from error
    # The hub stores a large file under its sha256, a small one under a git hash of 40 digits.
    blob = file.resolve().name
    known = sha256 or (blob if re.fullmatch("[0-9a-f]{64}", blob) else _hash_in_name(name))
    digest = sha256_of(file)
    record = cache / hashlib.sha256(text.encode()).hexdigest()[:16] / f"{Path(name).name}.sha256"
    _check_sha256(digest, known or _recorded(record), text)
    if known is None:
        _keep(record, digest, text)
    return file


def _hash_in_name(name: str) -> str | None:
    found = HASH_IN_NAME.search(name)
    return found[1] if found else None


def _check_sha256(digest: str, known: str | None, what: str) -> None:
    if known and not digest.startswith(known.lower()):
        raise ChecksumMismatch(
            f"{what}: its sha256 is {digest}, {known} is expected; it is damaged or another file"
        )


def _recorded(record: Path) -> str | None:
    return record.read_text().split()[0] if record.is_file() else None


def _keep(record: Path, digest: str, url: str) -> None:
    """Write what is to be expected of a URL from now on, in the format of sha256sum."""
    if record.is_file():
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(record) as part:
        part.write_text(f"{digest}  {record.name.removesuffix('.sha256')}\n")
    print(f"{url}: no sha256 is known; it is {digest}, kept in {record}", file=sys.stderr)
