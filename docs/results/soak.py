"""The campaigns at full size, one after another; what has passed at this commit is not run again.

    make soak

Each is a set of tests marked `soak`. Results are kept as they come, in experiments_out/soak, so a
campaign that was stopped goes on with those that are left; docs/results/soak.md is written anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from nanoscale.store.files import write_json, write_text
from nanoscale.store.provenance import provenance

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Campaign:
    """What is tried, and where its tests stand."""

    what: str
    tests: tuple[str, ...]
    at_once: int = 2  # processes; one where others would disturb


CAMPAIGNS = {
    "fuzz": Campaign(
        "20,000 commands and files with one thing changed; 1,000 with runs, checkpoints, studies "
        "or config files damaged",
        ("soak/test_fuzz.py",),
    ),
    "kills": Campaign(
        "24 runs under fifty SIGKILLs, of workers and of the runner; fifty more of lengthened, "
        "branched and resumed runs, over micro-batches and ranks",
        ("soak/test_kills.py", "soak/test_forecast_kills.py"),
        1,
    ),
    "sanitizer": Campaign(
        "the kernels under AddressSanitizer, UBSan and ThreadSanitizer", ("soak/test_sanitizer.py",)
    ),
    "coverage": Campaign(
        "intervals against the truth, by simulation",
        (
            "soak/test_coverage.py",
            "checks",
            "laws",
            "studies/test_design.py",
            "studies/test_fit.py",
        ),
    ),
    "runs": Campaign(
        "kills, ranks, compilation and clusters, in every combination",
        (
            "training/test_training.py",
            "training/test_bench.py",
            "model/test_distributed.py",
            "experiments",
        ),
    ),
    "flags": Campaign(
        "every combination of the model's flags",
        (
            "spec/test_counting.py",
            "spec/test_architecture.py",
            "spec/test_memory.py",
            "model/test_model.py",
            "model/test_optim.py",
        ),
    ),
    "rules": Campaign("coordinate checks of right rules", ("studies/test_coord_check.py",)),
    "goldens": Campaign("the command line's heavy cases", ("golden",)),
    "speed": Campaign(
        "ratios of timings, with nothing beside them", ("training/test_speed.py",), 1
    ),
    "bridges": Campaign(
        "exports and imports of every combination of parts, preparations killed at every write, "
        "trackers against a server",
        ("training/test_export.py", "data/test_writer.py", "soak/test_wandb_server.py"),
    ),
    "studies": Campaign(
        "the quick study, from a file to its page",
        (
            "soak/test_studies.py",
            "studies/test_study.py",
            "studies/test_forecast_recipe.py",
            "studies/test_forecast_stages.py",
            "studies/test_next.py",
            "studies/test_seals.py",
            "studies/test_isoflop.py",
        ),
    ),
    "page": Campaign(
        "a study's page and its live view clicked through in chromium, light and dark, at three "
        "widths, without scripts and on paper (pip install playwright)",
        ("soak/test_browser.py",),
        1,
    ),
}
KEPT = ROOT / "experiments_out" / "soak"


def run(name: str, commit: str) -> dict[str, object]:
    """The record of a campaign: passed or not, its last line, its seconds."""
    path = KEPT / f"{name}.json"
    if path.is_file():
        record: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
        if record["passed"] and record["commit"] == commit:
            return record
    began = time.perf_counter()
    tests = [str(ROOT / "tests" / path) for path in CAMPAIGNS[name].tests]
    processes = f"-n{CAMPAIGNS[name].at_once}"
    command = [sys.executable, "-m", "pytest", "-m", "soak", "-rf", processes, *tests]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, encoding="utf-8")
    last = done.stdout.strip().splitlines()[-1]
    record = {
        "campaign": name,
        "passed": done.returncode == 0,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "tests": last.split(" in ")[0],
        "minutes": round((time.perf_counter() - began) / 60, 1),
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    if done.returncode:
        print(done.stdout[-4000:])
    return record


def page(records: list[dict[str, object]]) -> str:
    lines = [
        "# The campaigns at full size",
        "",
        "Remake: `make soak`. `make test` holds a small sample of each.",
        "",
        "| campaign | | tests | minutes | date | commit |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        what = CAMPAIGNS[str(record["campaign"])].what
        cells = (record["tests"], record["minutes"], record["date"], record["commit"])
        lines.append(f"| {record['campaign']} | {what} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    commit = str(provenance()["git_commit"])[:10]
    records = []
    for name in CAMPAIGNS:
        records.append(run(name, commit))
        print(f"{name}: {records[-1]['tests']}, {records[-1]['minutes']} minutes", flush=True)
        write_text(ROOT / "docs" / "results" / "soak.md", page(records))
    return 0 if all(record["passed"] for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
