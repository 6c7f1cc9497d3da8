"""Compiles a C++ file for the processor at hand, once, and keeps the library."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-fno-math-errno", "-shared", "-fPIC")


class CompilationError(RuntimeError):
    """A source file could not be compiled here; the message says why."""


def compile_library(source: Path) -> ctypes.CDLL:
    """Compile and load a C++ file, or load what an earlier process compiled.

    The library lies in ``$XDG_CACHE_HOME/mmconvnextv2`` (``~/.cache/mmconvnextv2``), under a name
    that depends on the source, the compiler and the processor, so that a home directory may be
    shared by different machines.

    Args:
        source: the file; it needs nothing but the standard library and OpenMP.

    Raises:
        CompilationError: there is no compiler (``$CXX``, c++ or g++), it fails, or what it made
            cannot be loaded.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise CompilationError("no C++ compiler was found ($CXX, c++, g++)")
    try:
        library = _cache_folder() / f"{source.stem}-{_fingerprint(source, compiler)}.so"
        if not library.is_file():
            _compile(source, compiler, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise CompilationError(f"{compiler}: {said.strip()}") from error


def _cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mmconvnextv2"


def _fingerprint(source: Path, compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    content = [source.read_bytes(), version, _processor(), " ".join(FLAGS).encode()]
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:16]


def _processor() -> bytes:
    """What tells processors with different instructions apart."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return f"{platform.machine()} {platform.processor()}".encode()
    lines = cpuinfo.read_bytes().splitlines()
    kinds = (b"vendor_id", b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(kinds)}))


def _compile(source: Path, compiler: str, library: Path) -> None:
    """Write the library whole or not at all: other processes may compile it at the same time."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        temporary = Path(folder) / library.name
        command = [compiler, *FLAGS, str(source), "-o", str(temporary)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        os.replace(temporary, library)
