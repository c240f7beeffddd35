"""Refusals: one line, the right exit code, and no waiting for torch to say so."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from tiny import PATIENCE, ROOT, run_python

from nanoscale.errors import (
    BAD_INPUT,
    DONE,
    FAILURE,
    INCONCLUSIVE,
    INTERRUPTED,
    UserError,
    did_you_mean,
    disk_errors,
    exit_code_of,
    one_of,
)


def raising(error: BaseException):
    def main() -> int:
        raise error

    return main


def test_the_exit_codes_are_the_contract():
    assert (DONE, FAILURE, BAD_INPUT, INCONCLUSIVE, INTERRUPTED) == (0, 1, 2, 3, 130)
    assert exit_code_of(lambda: None) == DONE
    assert exit_code_of(lambda: FAILURE) == FAILURE


def test_a_refusal_is_one_line_and_exit_2(capsys):
    assert exit_code_of(raising(UserError("n_layer=x:\n  expected\ta number"))) == BAD_INPUT
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: n_layer=x: expected a number\n")


def test_an_interruption_is_130_and_a_defect_is_not_hidden():
    assert exit_code_of(raising(KeyboardInterrupt())) == INTERRUPTED
    with pytest.raises(ZeroDivisionError):
        exit_code_of(raising(ZeroDivisionError()))


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO, errno.ESTALE])
def test_a_failure_that_may_pass_is_no_bad_input(code):
    """A run that ends with exit code 2 is not tried again."""
    with pytest.raises(OSError, match="x"):
        exit_code_of(raising(OSError(code, os.strerror(code), "x")))


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "may write"),
        (errno.EACCES, "may write"),
        (errno.EPERM, "may write"),
        (errno.ENOTDIR, "a file stands"),
        (errno.EEXIST, "a file stands"),
        (errno.EISDIR, "a folder stands"),
        (errno.ENAMETOOLONG, "shorter name"),
    ],
)
def test_the_disks_refusals_become_ours_with_a_remedy(code, remedy):
    with (
        pytest.raises(UserError, match=rf"^cannot write out/x: .*; .*{remedy}"),
        disk_errors("out/x"),
    ):
        raise OSError(code, os.strerror(code))


def test_other_system_errors_stay_what_they_are():
    with pytest.raises(ChildProcessError), disk_errors("x"):
        raise ChildProcessError(errno.ECHILD, "no child")
    with pytest.raises(KeyError), disk_errors("x"):
        raise KeyError("k")


def test_words_are_suggested_only_when_near():
    assert did_you_mean("n_layr", ["n_layer", "n_head"]) == "; did you mean 'n_layer'?"
    assert did_you_mean("zzz", ["n_layer", "n_head"]) == ""
    assert one_of(["a"]) == "'a'"
    assert one_of(("a", "b", 3)) == "'a', 'b' or 3"


# --- as a command ------------------------------------------------------------------------------

ANSWERED_WITHOUT_TORCH = [
    (["--help"], DONE),
    (["train", "--help"], DONE),
    (["trian"], BAD_INPUT),
    ([], BAD_INPUT),
    (["train", "--n_layers=4"], BAD_INPUT),
    (["train", "--n_layer=four"], BAD_INPUT),
    (["train", "--n_embd=7", "--n_head=2"], BAD_INPUT),
    (["train", "nowhere.py"], BAD_INPUT),
    (["train", "--dataset=nowhere"], BAD_INPUT),
    (["params", "--vocab_size=65"], DONE),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "code"), ANSWERED_WITHOUT_TORCH)
def test_what_needs_no_torch_never_imports_it(tmp_path, arguments, code):
    script = (
        "import sys\nfrom nanoscale.commands.main import main\n"
        f"code = main({arguments!r})\n"
        "slow = {'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else code)"
    )
    done = run_python("-c", script, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    if code == BAD_INPUT and arguments:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_module_is_the_command():
    done = run_python("-m", "nanoscale", "train", "--n_layers=4")
    assert done.returncode == BAD_INPUT
    assert done.stderr == "error: --n_layers: unknown key; did you mean 'n_layer'?\n"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_a_reader_that_goes_away_is_no_error(arguments):
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-m", "nanoscale", *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=buffered,
    )
    process.stdout.close()  # as `| head -0` would
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(timeout=PATIENCE) == DONE
