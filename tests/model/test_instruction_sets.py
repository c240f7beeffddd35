"""The kernels compiled for lesser CPUs than this one: a sample of tests/soak."""

from __future__ import annotations

import platform

import pytest
from architectures import built_with, compare, compare_narrow, compare_updates

from nanoscale.model import kernels

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no compiler for the kernels")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("-O1", "-march=x86-64-v3")], ids=["native", "AVX2"])
def test_random_architectures_are_torchs(flags, tmp_path, monkeypatch):
    if flags:
        if platform.machine() != "x86_64" or "avx2" not in kernels.cpu_flags():
            pytest.skip("needs AVX2")
        library = kernels.loaded(built_with(tmp_path, *flags))
        monkeypatch.setattr(kernels, "library", lambda: library)
    for seed in range(24):
        compare(seed)
    compare_narrow(range(8))
    compare_updates(0)


@pytest.mark.slow
def test_tiles_build(tmp_path):
    """Where there is a CPU with them nobody may look: there would be no kernels at all."""
    if platform.machine() != "x86_64":
        pytest.skip("needs a compiler for x86-64")
    built_with(tmp_path, "-O0", "-march=sapphirerapids")
