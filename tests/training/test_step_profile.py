"""Where a step goes, read off traces whose truth is planted."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nanoscale.training.step_profile import (
    BETWEEN,
    REST,
    StepProfile,
    events_of,
    step_profile,
    table,
)

Record = dict[str, Any]


def event(name: str, begin: float, end: float, kind: str = "cpu_op", **more: Any) -> Record:
    number = more.pop("number", None)
    args = {} if number is None else {"External id": number}
    where = {"pid": 1, "tid": more.pop("tid", 1)}
    return {
        "ph": "X",
        "name": name,
        "cat": kind,
        "ts": begin,
        "dur": end - begin,
        "args": args,
        **where,
    }


def named(name: str, begin: float, end: float) -> Record:
    return event(name, begin, end, "user_annotation")


def profile_of(*records: Record) -> StepProfile:
    return step_profile(events_of(records))


def parts(profile: StepProfile) -> dict[str, float]:
    """Milliseconds by part."""
    return {part.name: pytest.approx(part.ms) for part in profile.parts}


def operations(profile: StepProfile) -> dict[str, tuple[float, float]]:
    """Calls and milliseconds by operation."""
    return {row.name: (row.calls, pytest.approx(row.ms)) for row in profile.operations}


# Two steps of 10 and 14 ms, in microseconds: 12 in the mean.
STEPS = (
    named("step 6", 0, 10_000),
    named("data", 500, 1_000),
    named("forward", 1_000, 3_000),
    event("aten::mm", 1_200, 2_200),
    event("aten::copy_", 1_300, 1_400),
    named("backward", 3_000, 7_000),
    event("aten::mm", 3_000, 6_000),
    named("optimizer", 7_000, 9_000),
    named("step 7", 20_000, 34_000),
    named("data", 20_000, 20_500),
    named("forward", 21_000, 23_000),
    named("backward", 23_000, 27_000),
    named("evaluation", 28_000, 32_000),
    event("aten::mm", 29_000, 31_000),
    event("aten::mm", 12_000, 19_000),  # between the steps
    event("aten::mm", 500, 9_000, tid=2),  # on another thread
    {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}},
    {"ph": "i", "name": "Record Window End", "ts": 40_000, "pid": 1, "tid": 1, "s": "g"},
)


def test_a_steps_parts_and_operations_are_what_was_planted():
    profile = profile_of(*STEPS)
    assert (profile.first, profile.steps, profile.step_ms) == (6, 2, pytest.approx(12.0))
    assert parts(profile) == {
        "data": 0.5,
        "forward": 2.0,
        "backward": 4.0,
        "optimizer": 1.0,
        "evaluation": 2.0,
        REST: 2.5,
    }
    assert operations(profile) == {
        "aten::mm": (1.5, 2.95),
        "aten::copy_": (0.5, 0.05),
        BETWEEN: (0.0, 9.0),
    }
    assert {part.name: part.steps for part in profile.parts}["evaluation"] == 1
    assert not profile.on_gpu


def test_the_order_of_a_traces_events_does_not_matter():
    shuffled = list(STEPS)
    random.Random(1).shuffle(shuffled)
    assert profile_of(*shuffled) == profile_of(*STEPS)


def test_a_part_inside_another_is_its_own():
    """The kernels' way back comes within the forward call of a step in one."""
    profile = profile_of(
        named("step 1", 0, 1_000),
        named("forward", 100, 800),
        event("backward", 300, 700, "nanoscale"),
        event("forward", 400, 450, "nanoscale"),
        event("nanoscale::attend", 500, 600, "nanoscale"),
        event("backward", 900, 950),  # an operation that is called like a part
    )
    found = parts(profile)
    assert (found["forward"], found["backward"], found[REST]) == (0.35, 0.35, 0.3)
    assert operations(profile)["nanoscale::attend"] == (1.0, 0.1)
    assert operations(profile)["backward"] == (1.0, 0.05)


def drawn(draw: random.Random, begin: float, end: float, depth: int = 0) -> list[Record]:
    """Events inside each other, some of which end after what they began in, as clocks differ."""
    records = []
    at = begin
    while at < end and depth < 4:
        at += draw.uniform(0, (end - begin) / 3)
        until = at + draw.uniform(0, (end - begin) / 2)
        if at >= end:
            break
        kind, name = draw.choice(
            [("cpu_op", "aten::mm"), ("nanoscale", "backward"), ("user_annotation", "forward")]
        )
        records.append(event(name, at, until, kind))
        records += drawn(draw, at, min(until, end), depth + 1)
        at = until
    return records


@pytest.mark.parametrize("seed", range(20))
def test_the_parts_add_up_to_the_step_and_the_operations_too(seed):
    draw = random.Random(seed)
    records = [named("step 1", 0, 1_000), named("step 2", 1_000, 2_500)]
    records += drawn(draw, 0, 1_000) + drawn(draw, 1_000, 2_500)
    profile = profile_of(*records)
    assert profile.step_ms == pytest.approx(1.25)
    for rows in (profile.parts, profile.operations):
        assert all(row.ms >= 0 for row in rows)
        assert sum(row.ms for row in rows) == pytest.approx(profile.step_ms)
        assert sum(row.share for row in rows) == pytest.approx(1)


def test_ten_operations_are_shown_the_costliest_first():
    records = [named("step 1", 0, 10_000)]
    for i in range(15):
        records.append(event(f"aten::op{i:02d}", 500 * i, 500 * i + 10 * (i + 1)))
    found = [row.name for row in profile_of(*records).operations]
    assert found == [BETWEEN, *(f"aten::op{i:02d}" for i in range(14, 5, -1))]


def test_on_a_gpu_the_operations_are_its_kernels_by_what_launched_them():
    """The way back is launched by another thread; a part lasts until the GPU is done."""
    profile = profile_of(
        named("step 1", 0, 10_000),
        named("forward", 0, 4_000),
        event("aten::mm", 100, 120, number=5),
        named("backward", 4_000, 9_000),
        event("aten::mm", 4_100, 4_120, tid=2, number=6),
        event("sgemm_128x64", 200, 3_200, "kernel", tid="stream 7", number=5),
        event("sgemm_64x64", 4_200, 8_200, "kernel", tid="stream 7", number=6),
        event("Memcpy HtoD", 10, 60, "gpu_memcpy", tid="stream 7", number=99),
        event("forward", 200, 3_200, "gpu_user_annotation", tid="stream 7", number=4),
    )
    assert profile.on_gpu
    assert (parts(profile)["forward"], parts(profile)["backward"]) == (4.0, 5.0)
    assert operations(profile) == {
        "aten::mm": (2.0, 7.0),
        BETWEEN: (0.0, 2.95),
        "Memcpy HtoD": (1.0, 0.05),
    }


def test_the_table_is_what_is_printed():
    assert (
        "\n".join(table(profile_of(*STEPS)))
        == """\
                                        ms   share
data                                 0.500    4.2%
forward                              2.000   16.7%
backward                             4.000   33.3%
optimizer                            1.000    8.3%  in 1 of 2 steps
evaluation                           2.000   16.7%  in 1 of 2 steps
the rest                             2.500   20.8%
a step                              12.000  100.0%
                         calls      own ms   share
(between operations)                 9.000   75.0%
aten::mm                   1.5       2.950   24.6%
aten::copy_                0.5       0.050    0.4%"""
    )
