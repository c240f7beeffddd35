"""The doctor: what it finds, where things are missing or broken; and that nothing ends it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from tiny import ROOT

from nanoscale.commands import attempts, doctor, findings, torch_findings
from nanoscale.commands.findings import FAULTY, LACKING, OK, Finding, looked
from nanoscale.commands.main import dispatch
from nanoscale.experiments import local
from nanoscale.experiments.local import Subprocess
from nanoscale.experiments.worker import Worker

EVERY = ["python", "nanoscale", "packages", "torch", "CPU", "memory", "instructions", "GPU"]
EVERY += ["a study", "a small run", "compiler", "kernels", "data", "output root", "disk", "git"]
EVERY += ["a file", "a product", "a run"]


def by_name(found: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


@pytest.fixture
def torchless(monkeypatch):
    """Nothing is asked of torch: its own process takes seconds."""
    monkeypatch.setattr(doctor, "with_torch", lambda tries: iter(()))


def a_torch(text: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another torch, before the real one."""
    (desk / "fake" / "torch").mkdir(parents=True)
    (desk / "fake" / "torch" / "__init__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(desk / "fake"))


# -- all of it ----------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_machine_that_has_all_is_told_part_by_part(desk, capsys):
    assert dispatch(["doctor", "--try", "--json=found.json"]) == 0
    record = json.loads((desk / "found.json").read_text())
    found = {finding["name"]: finding for finding in record["findings"]}
    assert record["ok"]
    assert set(EVERY) <= set(found)
    said = capsys.readouterr().out
    parts = [line for line in said.splitlines() if line in doctor.SECTIONS]
    assert parts == list(doctor.SECTIONS)
    assert all(finding["said"] in said for finding in record["findings"])
    assert said.splitlines()[-1] == "all that a study needs is here"
    assert "a tiny model trained to a loss of" in found["a run"]["said"]
    assert "GFLOP/s in float32" in found["a product"]["said"]
    assert found["data"]["said"].split(", ").count("tiny") == 1
    assert not (desk / "experiments_out").exists()


@pytest.mark.usefixtures("torchless")
def test_what_is_lacking_is_no_failure_and_what_is_broken_is_one(desk, monkeypatch, capsys):
    def look() -> Iterator[Finding]:
        yield Finding("Extras", "wings", LACKING, "not installed", "pip install wings")

    monkeypatch.setattr(findings, "extras", look)
    assert dispatch(["doctor"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "  missing  wings         not installed; pip install wings" in said
    assert said[-2] == "of use for more than a study, and not here: wings"
    assert said[-1].endswith("doctor --try` tries it")

    (desk / "experiments_out").write_text("a file")
    assert dispatch(["doctor", "--json=found.json"]) == 1
    said = capsys.readouterr().out
    assert "  broken   output root   experiments_out is a file; choose a folder" in said
    assert said.endswith("broken: output root; the lines above say what mends it\n")
    assert not json.loads((desk / "found.json").read_text())["ok"]


def test_an_error_in_a_look_is_a_finding_and_what_came_before_stays():
    def look() -> Iterator[Finding]:
        yield Finding("Machine", "one", OK, "fine")
        raise OSError("the disk\nis gone")

    first, second = looked("Machine", look)
    assert first.name == "one"
    assert (second.state, second.said) == (FAULTY, "OSError: the disk is gone")

    def missing() -> Iterator[Finding]:
        raise ModuleNotFoundError("No module named 'psutil'", name="psutil")
        yield

    (found,) = looked("Machine", missing)
    assert found.remedy == "pip install psutil"


# -- packages -----------------------------------------------------------------------------------
def installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """These versions of packages; None: it is not there."""
    real = metadata.version

    def version(name: str) -> str:
        found = versions.get(name.replace("-", "_"), real(name) if name not in versions else None)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)


def test_extras_are_those_of_the_packages_own_metadata():
    known = set(metadata.metadata("nanoscale").get_all("Provides-Extra"))
    assert [finding.name for finding in findings.extras()]
    assert set(by_name(findings.extras())) == known - set(findings.DEVELOPERS)


def test_an_extra_that_is_missing_or_too_old_says_how_to_get_it(monkeypatch):
    installed(monkeypatch, optuna=None)
    hpo = by_name(findings.extras())["hpo"]
    assert (hpo.state, hpo.said) == (LACKING, "optuna is not installed")
    assert hpo.remedy == "pip install 'nanoscale[hpo]'"
    installed(monkeypatch, optuna="2.0")
    assert by_name(findings.extras())["hpo"].said == "optuna 2.0 is not >=4"
    installed(monkeypatch, optuna="4.1.0", greenlet="3", cmaes="1")
    hpo = by_name(findings.extras())["hpo"]
    assert hpo.state == OK
    assert set(hpo.said.split(", ")) == {"optuna 4.1.0", "greenlet 3", "cmaes 1"}


def test_nothing_is_imported_to_know_its_version(monkeypatch):
    for name in ("optuna", "ray", "wandb", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert by_name(findings.extras())["hpo"].state == OK


def test_a_package_that_is_needed_and_missing_is_broken(monkeypatch):
    installed(monkeypatch, scipy=None, numpy="1.0")
    found = by_name(findings.python())
    assert (found["scipy"].state, found["scipy"].remedy) == (FAULTY, "pip install 'scipy>=1.11'")
    assert (found["numpy"].state, found["numpy"].said) == (FAULTY, "1.0 is not >=2.0")
    assert "scipy" not in found["packages"].said
    assert "pandas" in found["packages"].said
    assert not findings.amiss(Requirement("pandas"))


def test_a_nanoscale_that_is_not_installed_is_a_finding(monkeypatch):
    def none(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", none)
    found = by_name(looked("Python", findings.python))
    assert found["nanoscale"].state == OK
    assert "nanoscale" in found["python"].said


# -- torch, in a process of its own -------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise ImportError('no libgomp')", "it cannot be imported: ImportError: no libgomp"),
        ("raise OSError('wrong\\nELF class')", "it cannot be imported: OSError: wrong ELF class"),
        ("import os; os.abort()", "ended by SIGABRT"),
        ("print('torch says'); import os; os._exit(3)", "exit code 3: torch says"),
        ("raise SystemExit(0)", "exit code 0"),
    ],
)
def test_a_torch_that_does_not_load_is_a_line(desk, monkeypatch, capsys, text, words):
    a_torch(text, desk, monkeypatch)
    assert dispatch(["doctor"]) == 1
    said = capsys.readouterr().out
    assert f"  broken   torch         {words}" in said
    assert "pip install --force-reinstall torch" in said
    assert "  ok       disk" in said
    assert said.endswith("broken: torch; the lines above say what mends it\n")
    assert "Traceback" not in said


def test_a_package_that_is_installed_and_does_not_load_is_broken(monkeypatch):
    assert list(torch_findings.imports()) == []
    monkeypatch.setitem(sys.modules, "yaml", None)
    (found,) = torch_findings.imports()
    assert (found.name, found.state, found.remedy) == ("yaml", FAULTY, "pip install PyYAML")


def test_a_torch_that_hangs_is_a_line(desk, monkeypatch):
    a_torch("import time; time.sleep(1000)", desk, monkeypatch)
    monkeypatch.setattr(doctor, "TORCH_SECONDS", 1.0)
    (found,) = doctor.with_torch(False)
    assert (found.state, found.said) == (FAULTY, "no end after 1 seconds")


# -- what torch tells, here ---------------------------------------------------------------------
def test_a_gpu_that_torch_does_not_find_is_lacking(monkeypatch):
    from nanoscale.experiments import machine
    from nanoscale.training import hardware

    monkeypatch.setattr(hardware, "gpus", list)
    assert by_name(torch_findings.devices())["GPU"].state == OK
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: ("GPU-1",))
    gpu = by_name(torch_findings.devices())["GPU"]
    assert (gpu.state, gpu.remedy[:27]) == (LACKING, "install a build of torch fo")
    monkeypatch.setattr(hardware, "gpus", lambda: [("A GPU", 80 * 2**30), ("Apple's MPS", 0)])
    said = [f.said for f in torch_findings.devices() if f.name == "GPU"]
    assert said == ["A GPU, 80 GiB", "Apple's MPS"]


def test_a_cpu_is_told_by_what_it_has_and_has_not(monkeypatch):
    import torch

    there = {"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: there)
    said = by_name(torch_findings.devices())["instructions"].said
    assert said == "AVX2, AVX-512; without bfloat16, AMX"
    there.clear()
    said = by_name(torch_findings.devices())["instructions"].said
    assert said == "torch does not know them here"


def test_without_a_compiler_it_is_said_how_to_get_one(tmp_path, monkeypatch):
    from nanoscale.model import kernels

    monkeypatch.setattr(kernels, "library", lambda: None)
    monkeypatch.setenv("CXX", "false")
    found = by_name(torch_findings.kernels())
    assert found["compiler"].said == "CXX=false does not run"
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(kernels, "compiler_command", list)
    for system, remedy in kernels.COMPILERS.items():
        monkeypatch.setattr(kernels, "system", lambda system=system: system)
        found = by_name(torch_findings.kernels())
        assert (found["compiler"].state, found["compiler"].remedy) == (LACKING, remedy)
        assert found["kernels"].state == LACKING
        assert "torch's own operations do the work" in found["kernels"].said


def test_a_compiler_that_fails_says_why(tmp_path, monkeypatch):
    from nanoscale.model import kernels

    if kernels.torchs_openmp() is None:
        pytest.skip("torch brings no OpenMP here")
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo 1.0; exit; fi\n'
        "echo a warning >&2; echo 'x.h:1: error: no such header' >&2; exit 1\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert kernels.why_not() == f"{compiler} fails: x.h:1: error: no such header"
    monkeypatch.setenv("CXX", "false")
    assert kernels.why_not() == "there is no compiler"
    monkeypatch.setattr(kernels, "torchs_openmp", lambda: None)
    assert kernels.why_not() == "torch brings no OpenMP here that they could share"


def test_a_run_here_is_decided_by_what_decides_a_run(monkeypatch):
    from nanoscale.training import numerics

    decided = SimpleNamespace(
        device="mps", device_name="M", dtype="float16", kernels="torch", compile=True, threads=None
    )
    monkeypatch.setattr(numerics, "decide", lambda config, device: decided)
    (found,) = torch_findings.choice()
    assert found.said == "mps (M), float16, torch kernels, compiled"


def test_its_process_prints_a_line_of_json_for_each(monkeypatch, capsys):
    def broken() -> Iterator[Finding]:
        yield Finding("Python", "torch", FAULTY, "no")

    monkeypatch.setattr(torch_findings, "torch", broken)
    monkeypatch.setattr(sys, "argv", ["x", "try"])
    assert torch_findings.main() == 0
    (line,) = capsys.readouterr().out.splitlines()  # nothing else can be found then
    found = json.loads(line.removeprefix(torch_findings.MARK))
    assert Finding(**found) == Finding("Python", "torch", FAULTY, "no")


# -- the machine, the folder --------------------------------------------------------------------
def test_a_study_has_the_slots_that_a_study_would_have(monkeypatch):
    monkeypatch.setattr("nanoscale.experiments.machine.physical_cores", lambda: list(range(6)))
    monkeypatch.setattr("nanoscale.experiments.machine.gpus", list)
    (found,) = findings.workers()
    assert found.said.startswith("6 runs at once of threads=1")
    monkeypatch.setattr("nanoscale.experiments.machine.gpus", lambda: ["0", "1"])
    (found,) = findings.workers()
    assert found.said.startswith("2 runs at once, one to a GPU")
    monkeypatch.setattr("nanoscale.processes.forks", lambda: False)
    (found,) = findings.workers()
    assert found.said.endswith("a new Python for each")


@pytest.mark.usefixtures("torchless")
def test_a_folder_without_data_or_git_is_no_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nanoscale.data.dataset.CLONE", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert dispatch(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "  missing  data          no data set is prepared here; " in said
    assert "data prepare shakespeare_char" in said
    assert "  missing  git           not found; install git" in said


@pytest.mark.parametrize(
    ("what", "free", "may", "words"),
    [
        ("disk", 1e6, True, "0.0 GB free; free some space"),
        ("output root", 1e12, False, "may not be written to; choose a folder"),
    ],
)
def test_no_room_and_no_right_to_write_are_broken(desk, monkeypatch, what, free, may, words):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(os, "access", lambda path, how: may)
    found = by_name(findings.results(Path("out")))
    assert found[what].state == FAULTY
    assert words in found[what].line()
    assert [name for name in found if found[name].state == FAULTY] == [what]


# -- attempts -----------------------------------------------------------------------------------
def test_a_run_that_does_not_train_is_broken_and_leaves_nothing(desk, monkeypatch):
    fails = Worker((sys.executable, "-c", "print('error: a bad day'); raise SystemExit(1)"))
    monkeypatch.setattr(local, "local_backend", lambda: Subprocess(fails))
    found = by_name(attempts.attempts(desk / "a" / "b"))
    assert found["a file"].state == OK
    assert (found["a run"].state, found["a run"].said) == (
        FAULTY,
        "a tiny model did not train: error: a bad day",
    )
    assert not (desk / "a").exists()


def test_a_root_that_cannot_be_written_is_broken_when_it_is_tried(desk):
    (desk / "file").write_text("")
    (found,) = attempts.attempts(desk / "file" / "out")
    assert (found.state, found.remedy) == (FAULTY, "choose another folder: --output_root=DIR")


def test_the_package_names_no_extra_twice():
    """The extras are the metadata's: no list of them stands in the code."""
    text = "".join(
        (ROOT / "nanoscale" / "commands" / f"{name}.py").read_text(encoding="utf-8")
        for name in ("doctor", "findings", "torch_findings", "attempts")
    )
    for extra in ("optuna", "pyarrow", "openpyxl", "trackio", "tensorboard", "lm_eval"):
        assert extra not in text
