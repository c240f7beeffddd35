"""The kernels under AddressSanitizer, UBSan and ThreadSanitizer: no access out of bounds, nothing
undefined, no two threads at one place.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

from nanoscale.model import kernels

KERNELS = ("tests/model/test_kernels.py", "tests/model/test_whole_update.py")
IN_MEMORY = (
    ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "libasan.so",
)
OF_THREADS = (
    ("-fsanitize=thread", "-Wl,-Bsymbolic", str(Path(__file__).with_name("threads.cpp"))),
    "libtsan.so",
)
CODE = """
import sys
from nanoscale.model import kernels

kernels.FLAGS = (*kernels.FLAGS, "-O1", "-g", *{flags!r})
assert kernels.library() is not None, "the sanitized kernels do not build"
import pytest

sys.exit(pytest.main(["-q", "--capture=no", "-p", "no:cacheprovider", "-x", *{arguments!r}]))
"""


def run_time(library: str) -> str:
    """The sanitizer's library, which must come before all others; empty where there is none."""
    done = subprocess.run(["g++", f"-print-file-name={library}"], capture_output=True, text=True)
    path = Path(done.stdout.strip())
    return str(path.resolve()) if path.is_absolute() and path.exists() else ""


def run_sanitized(
    arguments: list[str], tmp_path: Path, flags: tuple[str, ...], library: str
) -> None:
    preloaded = run_time(library)
    if kernels.built() is None or not preloaded:
        pytest.skip("needs g++ with its sanitizers")
    environment = os.environ | {
        "LD_PRELOAD": preloaded,
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "halt_on_error=1",
        "XDG_CACHE_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    code = CODE.format(flags=flags, arguments=arguments)
    # addresses where a sanitizer expects them
    command = ["setarch", "-R"] if shutil.which("setarch") else []
    done = subprocess.run(
        [*command, sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.soak
def test_a_few_kernels_are_clean(tmp_path):
    run_sanitized(["tests/model/test_kernels.py", "-k", "gelu or swiglu"], tmp_path, *IN_MEMORY)


@pytest.mark.soak
def test_all_kernels_are_clean(tmp_path):
    run_sanitized([*KERNELS, "-m", "not soak"], tmp_path, *IN_MEMORY)


@pytest.mark.soak
def test_no_two_threads_are_at_one_place(tmp_path):
    run_sanitized([*KERNELS, "-m", "not soak"], tmp_path, *OF_THREADS)
