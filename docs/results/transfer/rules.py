"""Every rule of Muon: the drift of its learning rate beside the slope of its signal fraction.

    python docs/results/transfer/rules.py

reads muon_rules.json, a list of `{rule, corpus, tokens_per_update, size, table, arguments}`, judges
each as `nanoscale transfer TABLE ARGUMENTS` does, and writes muon_rules.md and muon_rules.png.
The signal fractions are noise_512.json and noise_2048.json, of `nanoscale noise-check`.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

from nanoscale.__main__ import main as nanoscale
from nanoscale.report import save
from nanoscale.report.marks import headed, label
from nanoscale.report.style import INK, RULE, SIZES, sheet, styled
from nanoscale.store.files import write_text

HERE = Path(__file__).parent
DIRECTIONS = {  # rule -> what its update is made of
    "muon": "Newton-Schulz",
    "width power": "Newton-Schulz",
    "hyperball": "Newton-Schulz",
    "polar": "polar factor",
    "power": "power 1/2",
}


def verdict(entry: dict[str, Any]) -> dict[str, Any]:
    """What the command says of an entry."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "verdict.json"
        arguments = shlex.split(entry["arguments"])
        nanoscale(["transfer", str(HERE / entry["table"]), *arguments, f"--json={out}"])
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def signal(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The slope of the rule's signal fraction at its batch, less what the rule adds itself."""
    file = HERE / f"noise_{entry['tokens_per_update']}.json"
    direction = DIRECTIONS.get(entry["rule"])
    if direction is None or not file.is_file() or entry["corpus"] != "shakespeare_char":
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["signal"][direction]
    return found["slope"]


def interval(value: float, ends: list[float]) -> str:
    return f"{value:+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}]"


def row(entry: dict[str, Any], found: dict[str, Any]) -> str:
    """A line of the table."""
    slope = signal(entry)
    told = interval(slope["slope"], slope["ci95"]) if slope else "-"
    drift, largest = found["drift"], found["sizes"][-1]
    cells = [
        f"`{entry['rule']}`",
        entry["corpus"],
        f"{entry['tokens_per_update']:,}",
        told,
        interval(drift["value"], drift["ci95"]),
        f"{found['largest_shift']['value']:.2f}",
        f"{found['max_regret']['value']:.3f}",
        f"{largest['min_loss']:.3f}",
        f"{largest['transferred_loss']:.3f}",
        found["verdict"],
    ]
    return f"| {' | '.join(cells)} |"


TITLE = """# Rules of Muon over width

Made by `python docs/results/transfer/rules.py` of [muon_rules.json](muon_rules.json). Slopes and
drifts in octaves per doubling of width, shift in octaves, losses in nats; intervals are of 95 %.
"""
HEADS = (
    "rule",
    "corpus",
    "tokens per update",
    "signal slope",
    "drift",
    "shift",
    "regret",
    "tuned at 256",
    "at the rate of 32",
    "verdict",
)


@styled()
def figure(points: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> Any:
    """Drift against the slope of the signal fraction; on the line they are equal."""
    drawn, (axes,) = sheet(5.6, 4.6)
    ends = [-0.8, 0.2]
    axes.plot(ends, ends, color=RULE, linewidth=1.2, zorder=1)
    label(axes, "equal", (0.13, 0.13), (0, 4), on="data", size=8)
    for (name, slope, drift), colour in zip(points, SIZES * 3, strict=False):
        x, y = slope["slope"], drift["value"]
        axes.plot(slope["ci95"], (y, y), color=colour, linewidth=1)
        axes.plot((x, x), drift["ci95"], color=colour, linewidth=1)
        axes.plot([x], [y], "o", color=colour, markersize=6)
        label(axes, name, (x, y), (6, 5), on="data", colour=INK, size=8)
    axes.set(xlim=(-0.6, 0.2), ylim=ends)
    headed(
        axes,
        "drift of the best learning rate (octaves per doubling of width)",
        "slope of the signal fraction (the same)",
    )
    return drawn


def main() -> None:
    entries = json.loads((HERE / "muon_rules.json").read_text(encoding="utf-8"))
    rows = [TITLE, f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    points = []
    for entry in entries:
        found = verdict(entry)
        rows.append(row(entry, found))
        slope = signal(entry)
        if slope and entry["rule"] != "width power":  # whose direction is Muon's
            name = f"{entry['rule']}, {entry['tokens_per_update']:,}"
            points.append((name, slope, found["drift"]))
    write_text(HERE / "muon_rules.md", "\n".join(rows) + "\n")
    if points:
        save(figure(points), HERE / "muon_rules.png")


if __name__ == "__main__":
    main()
