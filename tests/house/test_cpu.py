"""The processor, as each system tells of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nanoscale import cpu
from nanoscale.processes import LINUX, MACOS, MS_WINDOWS


@pytest.fixture(autouse=True)
def unknown():
    """What this machine has told is forgotten, before and after."""
    cpu.cpu_name.cache_clear()
    cpu.cpu_flags.cache_clear()
    yield
    cpu.cpu_name.cache_clear()
    cpu.cpu_flags.cache_clear()


def on(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(cpu, "system", lambda: name)


def test_linux_says_it_in_a_file(monkeypatch, tmp_path):
    on(monkeypatch, LINUX)
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name\t: A CPU @ 2 GHz\nflags\t\t: fpu avx2 fma\n")
    monkeypatch.setattr(cpu, "open", lambda path, **how: file.open(**how), raising=False)
    assert cpu.cpu_name() == "A CPU @ 2 GHz"
    assert cpu.cpu_flags().split() == ["flags", ":", "fpu", "avx2", "fma"]


def test_a_linux_that_hides_it_says_nothing(monkeypatch, tmp_path):
    on(monkeypatch, LINUX)
    monkeypatch.setattr(cpu, "open", lambda path, **how: (tmp_path / "none").open(), raising=False)
    assert cpu.cpu_name() is None
    assert cpu.cpu_flags() == ""


def test_macos_says_it_by_a_command(monkeypatch):
    told = {"machdep.cpu.brand_string": b"Apple M1\n", "machdep.cpu.features": b"SSE4.2 AVX1.0\n"}

    def run(command: list[str], **how: object) -> SimpleNamespace:
        assert command[:2] == ["sysctl", "-n"]
        if command[2] not in told:
            raise cpu.subprocess.CalledProcessError(1, command)
        return SimpleNamespace(stdout=told[command[2]].decode())

    on(monkeypatch, MACOS)
    monkeypatch.setattr(cpu.subprocess, "run", run)
    assert cpu.cpu_name() == "Apple M1"
    assert cpu.cpu_flags() == "flags: sse4.2 avx1.0"
    told.clear()
    cpu.cpu_flags.cache_clear()
    assert cpu.cpu_flags() == ""
    monkeypatch.setattr(cpu.platform, "machine", lambda: "arm64")
    assert cpu.is_apples_own()
    assert not cpu.is_x86()


def test_windows_says_it_in_its_registry(monkeypatch):
    class Key:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    registry = SimpleNamespace(
        HKEY_LOCAL_MACHINE=1,
        OpenKey=lambda root, path: Key(),
        QueryValueEx=lambda key, name: (f"{name} of Intel  ", 1),
    )
    on(monkeypatch, MS_WINDOWS)
    monkeypatch.setattr(cpu, "import_module", lambda name: registry)
    monkeypatch.setattr(cpu.platform, "machine", lambda: "AMD64")
    assert cpu.cpu_name() == "ProcessorNameString of Intel"
    assert cpu.cpu_flags() == ""
    assert cpu.is_x86()
    assert not cpu.is_apples_own()
