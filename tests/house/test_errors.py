"""Refusals: one line, the right exit code, and no waiting for torch to say so."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tomllib

import pytest
from tiny import PATIENCE, ROOT, RUN, flags, run_python

from nanoscale.__main__ import main
from nanoscale.errors import (
    BAD_INPUT,
    DONE,
    FAILURE,
    INCONCLUSIVE,
    INTERRUPTED,
    PACKAGES,
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


@pytest.mark.parametrize(("rank", "waits"), [("0", False), ("1", True)])
def test_of_the_processes_of_one_run_the_first_speaks_first(monkeypatch, capsys, rank, waits):
    """torchrun ends the others meanwhile; what befell one of them alone is said all the same."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    said_before = []
    monkeypatch.setattr("time.sleep", lambda _: said_before.append(capsys.readouterr().err))
    assert exit_code_of(raising(UserError("no"))) == BAD_INPUT
    assert said_before == [""] * waits
    assert capsys.readouterr().err == "error: no\n"


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
        (errno.EFBIG, "free some space"),
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
        "import sys\nfrom nanoscale.__main__ import main\n"
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


def test_a_terminal_that_lacks_a_character_shows_another(monkeypatch):
    plain = b"0.5 +- 0.1 ?... ?\n"
    for encoding, errors, shown in (
        ("ascii", "strict", plain),
        ("ascii", "surrogateescape", plain),  # of the locale C without UTF-8
        ("latin-1", "strict", "0.5 ± 0.1 ?... ?\n".encode("latin-1")),
        ("utf-8", "strict", "0.5 ± 0.1 ф… ?\n".encode()),  # of a file's undecodable name
    ):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, errors))
        assert exit_code_of(lambda: print("0.5 ± 0.1 ф… \udcff")) == DONE
        assert raw.getvalue() == shown


@pytest.mark.parametrize("script", ["train.py", "sample.py", "bench.py"])
def test_a_script_without_our_packages_says_what_to_install(script):
    code = f"""import sys, runpy
sys.modules["click"] = None
runpy.run_path({str(ROOT / script)!r}, run_name="__main__")"""
    done = run_python("-c", code, cwd=ROOT)
    assert done.returncode == BAD_INPUT
    remedy = "run `pip install -e .` in the clone"
    assert done.stderr == f"error: click is not installed: {remedy}\n"


def test_a_run_without_our_packages_says_what_to_install(desk, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert main(["train", *flags(RUN), "--out_dir=run"]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("error: psutil is not installed: run `pip install")
    assert not (desk / "run").exists()


def test_what_is_to_be_installed_is_what_the_package_needs():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {line.split(">=")[0].replace("pyyaml", "yaml") for line in needed}
    assert names == set(PACKAGES)
    with pytest.raises(ModuleNotFoundError):
        exit_code_of(raising(ModuleNotFoundError("of the user's own", name="mine")))


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="a folder in which none can be made")
def test_a_place_to_write_that_is_none_is_refused(desk, capsys):
    assert main(["train", *flags(RUN), "--out_dir=/proc/nope"]) == BAD_INPUT
    assert "cannot make /proc/nope: no folder can be made there" in capsys.readouterr().err
    assert main(["data", "prepare", "synthetic", "--out=/proc/nope"]) == BAD_INPUT
    assert "cannot make /proc/nope: no folder can be made there" in capsys.readouterr().err
    assert main(["table", "any", "--out=nodir/x.csv"]) == BAD_INPUT
    said = capsys.readouterr().err
    assert said == "error: --out=nodir/x.csv: there is no folder nodir; make it first\n"
