"""Compiling the C sources of this folder at its first use, with the system's C compiler, into the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
# No contraction into fused operations: every one rounds as torch's does. The two others let rint and floor be instructions.
FLAGS = (
    "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC",
    "-std=gnu11",
)  # fmt: skip
TIMEOUT = 120  # seconds


class Unavailable(Exception):
    """Why there are no native kernels; the torch formulas serve instead."""


def load() -> ctypes.CDLL:
    """The compiled kernels: those of an earlier process where they are still right, else compiled now.

    Raises:
        Unavailable: no compiler, or it fails, or what it made does not load.
    """
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        raise Unavailable("no C compiler (cc, gcc, clang) was found")
    name = f"kernels-{_fingerprint(compiler)}.so"
    try:
        folder = cache_folder()
    except OSError:  # nothing to keep it in: each process has its own, which goes once it is loaded
        with tempfile.TemporaryDirectory() as temporary:
            return _open(_compile(compiler, Path(temporary) / name))
    path = folder / name
    return _open(path if path.exists() else _compile(compiler, path))


def cache_folder() -> Path:
    """Where compiled kernels are kept: LDP_CACHE, else the user's cache folder; nobody else may write there."""
    base = os.environ.get("LDP_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldp_search"
    folder = Path(base)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK) or (hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()):
        raise PermissionError(f"{folder} is not the user's own")
    return folder


def _fingerprint(compiler: str) -> str:
    """Of all that the result depends on. A home folder may be shared between machines with other processors."""
    sources = [source.read_text() for source in [*SOURCES, *HEADERS]]
    parts = [*sources, compiler, *FLAGS, platform.platform(), platform.machine(), _processor()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU")))


def _compile(compiler: str, path: Path) -> Path:
    """Under a name of its own first: processes that compile at the same time each put a whole file in place."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        command = [*compiler.split(), *FLAGS, *map(str, SOURCES), "-o", temporary, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        if done.returncode:
            raise Unavailable(f"{compiler} failed: {done.stderr.strip()[:500]}")
        os.replace(temporary, path)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{compiler} could not run: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"{path} does not load: {error}") from error
