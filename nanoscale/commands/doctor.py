"""`nanoscale doctor`: what this machine can do, what is missing, and how to get it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from nanoscale.commands import findings, torch_findings
from nanoscale.commands.findings import FAULTY, LACKING, Finding, looked
from nanoscale.commands.verb import json_output, output_root, say, verb
from nanoscale.errors import DONE, FAILURE, program

SECTIONS = ("Python", "Machine", "A run here", "Kernels", "Extras", "Folder", "Tried")
TORCH_SECONDS = 300.0  # with a process that compiles, too


@verb("nanoscale doctor", "nanoscale doctor --try")
@click.option("--try", "tries", is_flag=True, help="Write a file, multiply, train a tiny model.")
@json_output("what was found")
@output_root()
def command(tries: bool, json_path: Path | None, output_root: Path) -> int:
    """Say what this machine can do, what is missing and how to get it.

    Compiles the kernels, if that has not been done. Exits with 1 where something is broken that a
    study needs.
    """
    found = list(examination(output_root, tries))
    broken = [finding.name for finding in found if finding.state == FAULTY]
    record = {"ok": not broken, "findings": [asdict(finding) for finding in found]}
    say(lines(found, broken, tries), json_path, record)
    return FAILURE if broken else DONE


def examination(output_root: Path, tries: bool) -> Iterator[Finding]:
    """All findings, in no order."""
    for part, look in (
        ("Python", findings.python),
        ("Machine", findings.machine),
        ("A run here", findings.workers),
        ("Extras", findings.extras),
        ("Folder", partial(findings.folder, output_root)),
    ):
        yield from looked(part, look)
    yield from with_torch(tries)
    if tries:
        from nanoscale.commands.attempts import attempts

        yield from looked("Tried", partial(attempts, output_root))


def with_torch(tries: bool) -> Iterator[Finding]:
    """What a process of its own finds with torch; how it died, if it has."""
    from nanoscale.experiments.failures import signal_name
    from nanoscale.experiments.machine import Slot
    from nanoscale.experiments.worker import environment_of, whole_environment

    command = [sys.executable, "-P", "-m", torch_findings.__name__]
    command += ["try"] if tries else []
    with subprocess.Popen(
        command,
        env=whole_environment(environment_of(Slot({}))),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            said, _ = process.communicate(timeout=TORCH_SECONDS)
            code = process.returncode
            ended = f"ended by {signal_name(-code)}" if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            ended = f"no end after {TORCH_SECONDS:g} seconds"

    noise = ""
    has_looked = False
    for line in said.decode(errors="replace").splitlines():
        if line.startswith(torch_findings.MARK):
            has_looked = True
            yield Finding(**json.loads(line.removeprefix(torch_findings.MARK)))
        else:
            noise = line.strip() or noise
    if process.returncode or not has_looked:
        told = f"{ended}: {noise}" if noise else ended
        yield Finding("Python", "torch", FAULTY, told, torch_findings.REINSTALL)


def lines(found: list[Finding], broken: list[str], tries: bool) -> Iterator[str]:
    """The findings part by part, and what they come to."""
    for part in SECTIONS:
        of_part = [finding.line() for finding in found if finding.part == part]
        if of_part:
            yield from (part, *of_part, "")
    if broken:
        yield f"broken: {', '.join(broken)}; the lines above say what mends it"
        return
    lacking = [finding.name for finding in found if finding.state == LACKING]
    if lacking:
        yield f"of use for more than a study, and not here: {', '.join(lacking)}"
    further = "" if tries else f"; `{program()} doctor --try` tries it"
    yield f"all that a study needs is here{further}"
