"""The library made of `kernels.cpp`: compiled on first use, kept in the user's cache, called here.

Without Linux, g++ or torch's OpenMP there is none, and torch's own operations do the same work.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import c_double, c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-w",
)


class NormArguments(ctypes.Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_float), ("rms", ctypes.c_bool)]


class HeadsArguments(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("B", "T", "H", "K", "h", "sq", "sk", "sv")] + [
        ("scale", c_float)
    ]


_N, _F, _P = c_int64, c_float, c_void_p
SIGNATURES: dict[str, tuple[Any, ...]] = {  # in the order of the table at the end of kernels.cpp
    "join_norm": (_N, _N, _P, _P, _F, NormArguments, _P, _P, _P),
    "join_norm_backward": (_N, _N, _P, _P, _P, _F, NormArguments, _P, _P, _P, _P, _P),
    "turn": (_N, _N, _N, _N, _N, _P, _P, _F, _P, _P, _P),
    "turn_backward": (_N, _N, _N, _N, _N, _N, _P, _P, _F, _P, _P, _P, _P, _P),
    "attend": (HeadsArguments, _P, _P, _P, _P, _P),
    "attend_backward": (HeadsArguments, _P, _P, _P, _P, _P, _P, _P, _P, _P, _N),
    "gelu": (_N, _P, _P),
    "gelu_backward": (_N, _P, _P, _P),
    "swiglu": (_N, _N, _N, _P, _P, _P),
    "swiglu_backward": (_N, _N, _N, _N, _P, _P, _P, _P, _P),
    "cross_entropy": (_N, _N, _P, _P, _F, _P, _P),
    "embed": (_N, _N, _N, _P, _P, _P, _F, _P),
    "embed_backward": (_N, _N, _N, _P, _P, _F, _P, _P),
    "clip": (_N, _P, _F, _P),
    "adamw": (_N, _P, c_double, c_double),
}


@functools.cache
def library() -> dict[str, dict[torch.dtype, Any]] | None:
    """Each kernel by name and type of activations; None where they cannot be built."""
    path = built()
    if path is None:
        return None
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError:  # damaged: made anew by the next process
        path.unlink(missing_ok=True)
        return None
    table = (c_void_p * 2 * len(SIGNATURES)).in_dll(loaded, "nanoscale_kernels")
    return {
        name: {
            dtype: ctypes.CFUNCTYPE(None, *signature)(address)
            for dtype, address in zip((torch.float32, torch.bfloat16), row, strict=True)
        }
        for (name, signature), row in zip(SIGNATURES.items(), table, strict=True)
    }


def built() -> Path | None:
    """The compiled library, from the cache or made now (about two seconds, once per machine)."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    openmp = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    if platform.system() != "Linux" or compiler is None or not openmp:
        return None
    # torch's own OpenMP, so that there is one pool of threads
    command = [compiler, *FLAGS, str(SOURCE), str(openmp[0]), "-Wl,--as-needed"]
    key = hashlib.sha256("\n".join([*command, cpu_flags()]).encode() + SOURCE.read_bytes())
    for folder in cache_folders():
        path = folder / f"kernels-{key.hexdigest()[:16]}.so"
        if ours(path) or compile_to(path, command):
            return path
    return None


def cpu_flags() -> str:
    """What -march=native depends on."""
    with open("/proc/cpuinfo") as file:
        return next((line for line in file if line.startswith(("flags", "Features"))), "")


def cache_folders() -> list[Path]:
    """Where compiled code is kept: the user's cache, else a folder of this user's own."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return [Path(home) / "nanoscale", Path(tempfile.gettempdir()) / f"nanoscale-{os.getuid()}"]


def ours(path: Path) -> bool:
    """Whether the file is there and this user's own: another's code is never loaded."""
    try:
        return path.stat().st_uid == path.parent.stat().st_uid == os.getuid()
    except OSError:
        return False


def compile_to(path: Path, command: list[str]) -> bool:
    """Compile to `path`, whole or not at all; several processes may do so at once."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.parent.stat().st_uid != os.getuid():
            return False
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            subprocess.run([*command, "-o", str(made)], check=True, capture_output=True)
            made.replace(path)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Run a kernel; tensors go as their addresses, None as null."""
    library()[name][dtype](*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])
