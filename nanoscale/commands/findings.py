"""What the doctor finds without torch: packages, the machine, this folder. Each is a line.

Nothing that is broken ends an examination: it is what an examination is for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from nanoscale import __version__
from nanoscale.errors import counted, program

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OK, LACKING, FAULTY = "ok", "missing", "broken"
DEVELOPERS = ("dev", "docs")  # extras of no use but to who changes nanoscale
LEAST_FREE = 100e6  # bytes of disk; a study of small models takes less
GIT_REMEDY = "install git, so that results say by which commit they were made"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it stands, what was found, and what mends it.

    state: ok, missing (of use, and no study needs it) or broken.
    """

    part: str
    name: str
    state: str
    said: str
    remedy: str = ""

    def line(self) -> str:
        told = "; ".join(filter(None, (self.said, self.remedy)))
        return f"  {self.state:<8} {self.name:<13} {told}"


Look = Callable[[], Iterator[Finding]]


def looked(part: str, look: Look) -> Iterator[Finding]:
    """What a look finds; an error in it is a finding."""
    try:
        yield from look()
    except Exception as e:
        yield Finding(part, part.lower(), FAULTY, told(e), remedy_for(e, "please report this line"))


def told(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def remedy_for(error: Exception, otherwise: str) -> str:
    """What mends an import: the package that it lacks, or `otherwise`."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"pip install {distribution(error.name)}"
    return otherwise


def distribution(module: str) -> str:
    """What pip calls a module's package."""
    name = module.partition(".")[0]
    return metadata.packages_distributions().get(name, [name])[0]


# -- packages -----------------------------------------------------------------------------------
def python() -> Iterator[Finding]:
    """Python, nanoscale, and the packages that it needs."""
    version = sys.version.split()[0]
    yield Finding("Python", "python", OK, f"{version}, {sys.executable}")
    place = Path(__file__).parents[1]
    yield Finding("Python", "nanoscale", OK, f"{__version__}, {place}; typed as `{program()}`")
    needed, _ = requirements()
    bad = [requirement for requirement in needed if amiss(requirement)]
    for requirement in bad:
        remedy = f"pip install '{requirement.name}{requirement.specifier}'"
        yield Finding("Python", requirement.name, FAULTY, amiss(requirement), remedy)
    good = [f"{r.name} {metadata.version(r.name)}" for r in needed if r not in bad]
    yield Finding("Python", "packages", OK, ", ".join(good))


def extras() -> Iterator[Finding]:
    """Every extra of the package's own metadata, by the versions of what it brings."""
    for extra, brought in requirements()[1].items():
        faults = [f"{r.name} {amiss(r)}" for r in brought if amiss(r)]
        if faults:
            remedy = f"pip install 'nanoscale[{extra}]'"
            yield Finding("Extras", extra, LACKING, ", ".join(faults), remedy)
            continue
        there = [f"{r.name} {metadata.version(r.name)}" for r in brought]
        yield Finding("Extras", extra, OK, ", ".join(there))


def requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What nanoscale needs, and what each of its extras brings.

    Raises:
        PackageNotFoundError: it is not installed, only found.
    """
    from packaging.requirements import Requirement

    needed: list[Requirement] = []
    by_extra: dict[str, list[Requirement]] = defaultdict(list)
    extras = metadata.metadata("nanoscale").get_all("Provides-Extra") or []
    for text in metadata.requires("nanoscale") or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            needed.append(requirement)
            continue
        for extra in extras:
            if extra not in DEVELOPERS and marker.evaluate({"extra": extra}):
                by_extra[extra].append(requirement)
    return needed, by_extra


def amiss(requirement: Requirement) -> str:
    """What is wrong with the package that is required, by its metadata alone; "" for nothing."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{version} is not {requirement.specifier}"
    return ""


# -- the machine --------------------------------------------------------------------------------
def machine() -> Iterator[Finding]:
    """The CPU, its cores, the memory."""
    from nanoscale.cpu import cpu_name
    from nanoscale.processes import allowed_cpus, memory, physical_cores

    cores = len(physical_cores())
    threads = len(allowed_cpus())
    said = f"{cpu_name() or 'of no known name'}, {cores} cores ({threads} threads) for this process"
    yield Finding("Machine", "CPU", OK, said)
    total, free = memory()
    said = f"{total / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free"
    yield Finding("Machine", "memory", OK, said)


def workers() -> Iterator[Finding]:
    """How many runs of a study go on at once, and as what."""
    from nanoscale.experiments.machine import on_gpu, slots
    from nanoscale.processes import forks

    how = "forked from one process that has torch" if forks() else "a new Python for each"
    one = len(slots("auto", 1, None))
    said = f"{counted(one, 'run')} at once of threads=1; where a study leaves it out, one at a time"
    if on_gpu("auto"):
        said = f"{counted(one, 'run')} at once, one to a GPU"
    yield Finding("A run here", "a study", OK, f"{said}; {how}")


# -- this folder --------------------------------------------------------------------------------
def folder(output_root: Path) -> Iterator[Finding]:
    """Data sets, the output root, the disk, git."""
    from nanoscale.data.dataset import prepared_names

    names = prepared_names()
    if names:
        yield Finding("Folder", "data", OK, ", ".join(names))
    else:
        remedy = f"{program()} data prepare shakespeare_char"
        yield Finding("Folder", "data", LACKING, "no data set is prepared here", remedy)
    yield from results(output_root)
    yield git()


def results(output_root: Path) -> Iterator[Finding]:
    """The output root, what is in it, and the room there."""
    from nanoscale.experiments.results import RUNS, study_names

    above = next(path for path in (output_root, *output_root.absolute().parents) if path.exists())
    remedy = "choose a folder that you may write to: --output_root=DIR"
    if not above.is_dir():
        yield Finding("Folder", "output root", FAULTY, f"{above} is a file", remedy)
        return
    if not os.access(above, os.W_OK | os.X_OK):
        yield Finding("Folder", "output root", FAULTY, f"{above} may not be written to", remedy)
    else:
        studies = len(study_names(output_root))
        runs = sum(1 for _ in (output_root / RUNS).glob("*"))
        said = f"{output_root}: {studies} studies, {counted(runs, 'run')}"
        yield Finding("Folder", "output root", OK, said)

    free = shutil.disk_usage(above).free
    said = f"{free / 1e9:.1f} GB free"
    state, remedy = (OK, "") if free > LEAST_FREE else (FAULTY, "free some space")
    yield Finding("Folder", "disk", state, said, remedy)


def git() -> Finding:
    """git, and the commit that results will name."""
    from nanoscale.store.provenance import commit_of

    try:
        done = subprocess.run(["git", "--version"], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return Finding("Folder", "git", LACKING, "not found", GIT_REMEDY)
    said = done.stdout.decode(errors="replace").strip()
    commit, changed = commit_of(Path(__file__).parents[1])
    if commit:
        said += f"; nanoscale is at {commit[:10]}" + (", with changes" if changed else "")
    return Finding("Folder", "git", OK, said)
