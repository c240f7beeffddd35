"""The library made of `kernels.cpp`: compiled on first use, kept in the user's cache, called here.

Without a compiler a wheel's is taken. Where there is neither, or torch's OpenMP is not one that the
kernels' threads can be of (Windows), there is none: torch's own operations do the work.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_bool, c_double, c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanoscale import __version__
from nanoscale.cpu import cpu_flags, is_x86
from nanoscale.processes import LINUX, MACOS, MS_WINDOWS, system

SOURCE = Path(__file__).with_suffix(".cpp")
HEADERS = tuple(SOURCE.with_name(f"{name}.h") for name in ("products", "step", "muon", "update"))
NATIVE = "-march=native" if is_x86() else "-mcpu=native"
FLAGS = (
    "-O3",
    NATIVE,
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-w",
)

# By system: torch's own OpenMP, so that there is one pool of threads, and how a library ends.
OPENMP = {LINUX: "libgomp*", MACOS: "libomp*.dylib"}  # Windows' has no such calls
LIBRARY_ENDINGS = {LINUX: ".so", MACOS: ".dylib"}
COMPILERS = {  # by system: how to get one
    LINUX: "apt install g++ (or your distribution's)",
    MACOS: "xcode-select --install",
    MS_WINDOWS: "none is of use: torch's OpenMP for Windows is not one that they could share",
}

# What wheels bring for who has no compiler, the best first, and what a CPU must say that it has.
SHIPPED = {
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl avx2 bmi1 bmi2 f16c fma movbe",
    "x86-64-v3": "avx2 bmi1 bmi2 f16c fma movbe",
}

# By letters as in Python's `struct`.
TYPES: dict[str, type[ctypes._SimpleCData[Any]]] = {
    "q": c_int64,
    "f": c_float,
    "d": c_double,
    "P": c_void_p,
    "?": c_bool,
}
# The kernels' arguments, in the order of the table at the end of kernels.cpp.
SIGNATURES = {
    "add_norm": "qqPPfPPf?PPP",
    "add_norm_backward": "qqPPPfP?PPPPP",
    "norm_rope": "qqqqqPPfPPP",
    "norm_rope_backward": "qqqqqqPPfPPPPP",
    "attend": "qqqqqqqqfPqfPPPPP",
    "attend_backward": "qqqqqqqqfPqfPPPPPPPPPq",
    "gelu": "qPP",
    "gelu_backward": "qPPP",
    "swiglu": "qqqPPP",
    "swiglu_backward": "qqqqPPPPP",
    "cross_entropy": "qqPPfPP",
    "embed": "qqqPPPfP",
    "embed_backward": "qqqPPfPP",
    "clip": "qPfP",
    "adamw": "qPdd",
    "dropout": "qqqPqfPP",
    "step": "PP",
    "step_room": "PPP",
    "muon": "qP",
    "update": "P",
    "look": "PqP",
}
Kernels = dict[tuple[str, torch.dtype], Callable[..., None]]  # by name and type of activations


@functools.cache
def library() -> Kernels | None:
    """The kernels; None where they cannot be built."""
    path = built() or shipped()
    if path is None:
        return None
    try:
        return loaded(path)
    except OSError:  # damaged: made anew by the next process
        if path.parent != SOURCE.parent:
            path.unlink(missing_ok=True)
        return None


def loaded(path: Path) -> Kernels:
    """The kernels of a compiled library.

    Raises:
        OSError: it is none for this machine.
    """
    library = ctypes.CDLL(str(path))
    addresses = (c_void_p * 2 * len(SIGNATURES)).in_dll(library, "nanoscale_kernels")
    kernels: Kernels = {}
    for (name, signature), (single, narrow) in zip(SIGNATURES.items(), addresses, strict=True):
        prototype = ctypes.CFUNCTYPE(None, *(TYPES[letter] for letter in signature))
        kernels[name, torch.float32] = prototype(single)
        kernels[name, torch.bfloat16] = prototype(narrow)
    return kernels


def call(name: str, dtype: torch.dtype, *arguments: object) -> None:
    """Run a kernel on activations of `dtype`; tensors go as their addresses, None as null."""
    kernels = library()
    assert kernels is not None, "whoever chooses the kernels has looked whether they are there"
    plain = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    kernels[name, dtype](*plain)


def text_at(address: int) -> str:
    """A text that the kernels hold, which they do until the process ends."""
    return ctypes.string_at(address).decode()


# -- where it comes from --------------------------------------------------------------------------
def built() -> Path | None:
    """The compiled library, from the cache or made now (seconds, once per machine)."""
    compiler = compiler_command()
    version = version_of(compiler)
    openmp = torchs_openmp()
    if version is None or openmp is None:
        return None
    command = [*compiler, *FLAGS, str(SOURCE), *linked(openmp)]
    # of names, not paths: every clone and environment with this source and torch shares it
    named = [*linked(openmp)[1:], openmp.name]
    facts = "\n".join([*compiler, version, *FLAGS, *named, cpu_flags()])
    text = b"".join(path.read_bytes() for path in (SOURCE, *HEADERS))
    key = hashlib.sha256(facts.encode() + text)
    for folder in cache_folders():
        path = folder / f"kernels-{key.hexdigest()[:16]}{LIBRARY_ENDINGS[system()]}"
        if ours(path) or compile_to(path, command):
            return path
    return None


def torchs_openmp() -> Path | None:
    """The library of threads that torch has loaded, if it is one that the kernels can call."""
    if system() not in OPENMP:
        return None
    folder = Path(torch.__file__).parent / "lib"
    for path in sorted(folder.glob(OPENMP[system()])):
        with suppress(OSError):
            if hasattr(ctypes.CDLL(str(path)), "GOMP_parallel"):
                return path
    return None


def linked(openmp: Path) -> list[str]:
    """What joins the kernels to it; macOS looks for a library where it is told to."""
    where = [f"-Wl,-rpath,{openmp.parent}"] if system() == MACOS else []
    return [str(openmp), *where]


def shipped() -> Path | None:
    """A wheel's library for a CPU like this one, where there is no compiler."""
    if system() != LINUX or version_of(compiler_command()):
        return None
    names = set(cpu_flags().split())
    for instructions, needed in SHIPPED.items():
        path = SOURCE.with_name(f"kernels-{instructions}.so")
        if path.exists() and names.issuperset(needed.split()):
            return path
    return None


def ship() -> None:
    """Compile what a wheel brings, beside the source.

    Raises:
        subprocess.CalledProcessError: the compiler refuses.
    """
    for instructions in SHIPPED:
        path = SOURCE.with_name(f"kernels-{instructions}.so")
        flags = [*FLAGS, f"-march={instructions}"]
        subprocess.run([*compiler_command(), *flags, str(SOURCE), "-o", str(path)], check=True)


def compiler_command() -> list[str]:
    """CXX, a path or a command with arguments, or else g++ or clang++; empty without any."""
    given = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or ""
    if system() == MACOS and not runs(["xcode-select", "-p"]):
        return []  # there are names for all compilers, which ask to be installed
    if shutil.which(given):
        return [given]
    try:
        return shlex.split(given)
    except ValueError:  # a quote that is never closed
        return []


def version_of(compiler: list[str]) -> str | None:
    """What a compiler says that it is; None where it does not run."""
    if not compiler:
        return None
    command = [*compiler, "--version"]
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout.decode("latin-1")
    except (OSError, subprocess.CalledProcessError):
        return None


def how_to_get_a_compiler() -> str:
    """On this system."""
    return COMPILERS.get(system(), COMPILERS[LINUX])


def why_not() -> str:
    """Why there are no kernels here."""
    compiler = compiler_command()
    openmp = torchs_openmp()
    if openmp is None:
        return "torch brings no OpenMP here that they could share"
    if version_of(compiler) is None:
        return "there is no compiler"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernels.so"
        command = [*compiler, *FLAGS, str(SOURCE), *linked(openmp), "-o", str(made)]
        done = subprocess.run(command, capture_output=True)
        if not done.returncode:
            return "they build, and do not load or cannot be kept in the cache"
    said = done.stderr.decode(errors="replace").splitlines()
    wrong = [line for line in said if "error" in line] or said or ["no word of it"]
    return f"{compiler[0]} fails: {wrong[0]}"


def runs(command: list[str]) -> bool:
    """Whether a command does, and says that all is well."""
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def compiler_name() -> str | None:
    """The first line of what the compiler says that it is, or which library a wheel brought."""
    version = version_of(compiler_command())
    if version:
        return version.splitlines()[0]
    path = shipped()
    return f"nanoscale {__version__}: {path.stem}" if path else None


def cache_folders() -> list[Path]:
    """Where compiled code is kept: the user's cache, else a folder of this user's own."""
    own = Path(tempfile.gettempdir()) / f"nanoscale-{os.getuid()}"
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a container's user: no HOME, and no name to look one up by
        return [own]
    return [Path(home) / "nanoscale", own]


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
