"""The processor: its name and its instruction sets, as each system tells them."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import import_module
from typing import Any

from nanoscale.processes import LINUX, MACOS, MS_WINDOWS, system

X86 = ("x86_64", "amd64")
REGISTRY = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"  # where Windows keeps the name
SYSCTL = ("machdep.cpu.features", "machdep.cpu.leaf7_features")  # of a Mac with an Intel CPU


def is_x86() -> bool:
    return platform.machine().lower() in X86


def is_apples_own() -> bool:
    """Apple's chips: their GPU is what torch calls MPS."""
    return system() == MACOS and platform.machine() == "arm64"


@functools.cache
def cpu_name() -> str | None:
    """What the CPU calls itself; None where the system does not tell."""
    if system() == MACOS:
        return _sysctl("machdep.cpu.brand_string")
    if system() == MS_WINDOWS:
        winreg: Any = import_module("winreg")
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, REGISTRY) as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        except OSError:
            return None
    return _line("model name").partition(":")[2].strip() or None


@functools.cache
def cpu_flags() -> str:
    """`flags: ` and the names of its instruction sets, on which code for this very CPU depends;
    "" where the system does not tell them."""
    if system() == MACOS:
        names = " ".join(filter(None, map(_sysctl, SYSCTL)))
        return f"flags: {names.lower()}" if names else ""
    return _line("flags", "Features")


def _line(*beginnings: str) -> str:
    """The first line of Linux's /proc/cpuinfo that begins so."""
    if system() != LINUX:
        return ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((line for line in file if line.startswith(beginnings)), "")
    except OSError:
        return ""


def _sysctl(name: str) -> str | None:
    """One of macOS' facts."""
    try:
        done = subprocess.run(
            ["sysctl", "-n", name], capture_output=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
