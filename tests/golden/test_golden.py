"""The command line does what it did: every case of `cases.py` against its stored record.

The records are of the code before its files were moved. Text is compared exactly but for its
numbers, which may differ by rounding: other processors multiply matrices in another order. On one
machine `capture.py` and `diff -r` are exact; to accept a change, capture into
`expected`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from capture import Case, run_case
from cases import CASES
from tiny import warm_process

EXPECTED = Path(__file__).resolve().parent / "expected"
TOLERANCE = {"exact": 1e-6, "error": 1e-6, "help": 1e-6, "train": 2e-3, "search": 2e-2}
NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.]*\w)")
SHOWN = 12  # lines of differences
DIGITS = 3  # from so many on, the last one of a printed number may have been rounded otherwise


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.soak] if case.soak else [])
        for case in CASES
    ],
)
def test_the_command_line_does_what_it_did(case: Case) -> None:
    found = run_case(case, warm_process())
    if case.kind == "help":  # its words may change
        for step in found["steps"]:
            helped = step["argv"] != []
            assert step["exit"] == (0 if helped else 2), step["argv"]
            assert step["stdout"], step["argv"]
        return
    expected = json.loads((EXPECTED / f"{case.name}.json").read_text(encoding="utf-8"))
    differences = list(differ(expected, found, "", TOLERANCE[case.kind]))
    if differences:
        more = [f"... and {len(differences) - SHOWN} more"] * (len(differences) > SHOWN)
        pytest.fail("\n".join([f"{case.name}:", *differences[:SHOWN], *more]), pytrace=False)


def test_every_record_has_its_case() -> None:
    stored = {path.stem for path in EXPECTED.glob("*.json")}
    assert stored == {case.name for case in CASES}


# -- comparing ----------------------------------------------------------------------------------
def differ(was: Any, now: Any, where: str, tolerance: float) -> Iterator[str]:
    """A line per difference of two records, with the place."""
    if isinstance(was, dict) and isinstance(now, dict):
        if [k for k in was if k in now] != [k for k in now if k in was] or was.keys() ^ now.keys():
            yield f"{where}: keys were {list(was)}, now {list(now)}"
        for key in was:
            if key in now and key != "digest":  # of exact digits
                yield from differ(was[key], now[key], f"{where}/{key}", tolerance)
    elif isinstance(was, list) and isinstance(now, list):
        for k, (a, b) in enumerate(zip_longest(was, now, fillvalue="<nothing>")):
            yield from differ(a, b, f"{where}/{k}", tolerance)
    elif not same(was, now, tolerance):
        yield f"{where}:\n  - {was}\n  + {now}"


def same(was: Any, now: Any, tolerance: float) -> bool:
    if isinstance(was, str) and isinstance(now, str):
        return same_text(was, now, tolerance)
    if isinstance(was, float) and isinstance(now, (int, float)):
        return math.isclose(was, now, rel_tol=tolerance, abs_tol=tolerance * 1e-3)
    return type(was) is type(now) and was == now


def same_text(was: str, now: str, tolerance: float) -> bool:
    """Equal words, and numbers that are near; of a refusal's usage only that it is there."""
    was, now = was.split("usage: ")[0], now.split("usage: ")[0]
    if tolerance > TOLERANCE["exact"]:  # columns are as wide as their numbers, and as paths
        was, now = " ".join(was.split()), " ".join(now.split())
    if NUMBER.sub("#", was) != NUMBER.sub("#", now):
        return False
    pairs = zip(NUMBER.findall(was), NUMBER.findall(now), strict=True)
    return all(a == b or near(a, b, tolerance) for a, b in pairs)


def near(was: str, now: str, tolerance: float) -> bool:
    """Whether two printed numbers are near: by `tolerance`, or by one in their last digit."""
    a, b = (float(text.replace(",", "").replace("\u2212", "-")) for text in (was, now))
    if "." not in was and "e" not in was.lower():
        return a == b
    mantissa, _, power = was.lower().partition("e")
    decimals, figures = len(mantissa.partition(".")[2]), len(re.sub(r"\D", "", mantissa).strip("0"))
    last = 10.0 ** (int(power or 0) - decimals) if figures >= DIGITS else 0.0
    return abs(a - b) <= max(tolerance * max(abs(a), abs(b)), 1.01 * last)
