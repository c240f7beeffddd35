"""The kernels under AddressSanitizer and UBSan: no access out of bounds, nothing undefined."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

from nanoscale.model import kernels

SANITIZE = "-fsanitize=address,undefined"
CODE = """
import sys
from nanoscale.model import kernels

kernels.FLAGS = (*kernels.FLAGS, "-O1", "-g", {flag!r}, "-fno-sanitize-recover=undefined")
assert kernels.library() is not None, "the sanitized kernels do not build"
import pytest

sys.exit(pytest.main(["-q", "--capture=no", "-p", "no:cacheprovider", "-x", *{arguments!r}]))
"""


def sanitizer() -> str:
    """The run-time library, which must come before all others; empty where there is none."""
    done = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True)
    path = Path(done.stdout.strip())
    return str(path.resolve()) if path.is_absolute() and path.exists() else ""


def run_sanitized(arguments: list[str], tmp_path: Path) -> None:
    if kernels.built() is None or not sanitizer():
        pytest.skip("needs g++ with its sanitizers")
    environment = os.environ | {
        "LD_PRELOAD": sanitizer(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "XDG_CACHE_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    code = CODE.format(flag=SANITIZE, arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.soak
def test_a_few_kernels_are_clean(tmp_path):
    run_sanitized(["tests/model/test_kernels.py", "-k", "gelu or swiglu"], tmp_path)


@pytest.mark.soak
def test_all_kernels_are_clean(tmp_path):
    run_sanitized(["tests/model/test_kernels.py", "-m", "not soak"], tmp_path)
