"""Where a training step goes: parts that add up to it, and the operations that cost most.

Both are read off a trace in Chrome's Trace Event Format, as torch's profiler writes it. A part's or
an operation's time is its own: what lies inside another one is that one's.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nanoscale.spec.values import Json

ALWAYS = ("data", "forward", "backward", "optimizer")
SOMETIMES = ("evaluation", "statistics", "checkpoint")
STEP_PARTS = (*ALWAYS, *SOMETIMES)
REST = "the rest"
BETWEEN = "(between operations)"
STEP = re.compile(r"step (\d+)")
OF_KERNELS = "nanoscale"  # the kind of spans that our kernels leave
ANNOTATION = "user_annotation"  # the kind of ranges that a program names
ON_A_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # kinds
MOST_OPERATIONS = 10
MOST_CHARACTERS = 60


@dataclass(frozen=True)
class TraceEvent:
    """Something that took a while on one thread, or on one stream of a GPU."""

    name: str
    kind: str
    begin: float  # microseconds
    end: float
    thread: int | str
    operation: int | None  # the number of a torch operation; of a GPU's kernel, what launched it

    @property
    def is_part(self) -> bool:
        return self.name in STEP_PARTS and self.kind in (ANNOTATION, OF_KERNELS)

    @property
    def is_step(self) -> bool:
        return self.kind == ANNOTATION and STEP.fullmatch(self.name) is not None


def events_of(records: Iterable[Mapping[str, Any]]) -> list[TraceEvent]:
    """The complete events ("X") of a trace."""
    events = []
    for record in records:
        if record["ph"] != "X":
            continue
        begin = float(record["ts"])
        event = TraceEvent(
            name=record["name"],
            kind=record.get("cat", ""),
            begin=begin,
            end=begin + max(0.0, float(record["dur"])),
            thread=record["tid"],
            operation=record.get("args", {}).get("External id"),
        )
        events.append(event)
    return events


# -- one thread's events, one inside the other ----------------------------------------------------
@dataclass
class Open:
    """An event that has begun, and those around and inside it."""

    event: TraceEvent
    end: float  # not after that of the one around it
    part: str
    in_step: bool
    inside: float = 0.0  # microseconds of events directly inside it

    @property
    def own(self) -> float:
        """Microseconds in no other event."""
        return max(0.0, self.end - self.event.begin - self.inside)


def nested(events: Iterable[TraceEvent]) -> Iterator[Open]:
    """The events of one thread as they end, each with its own time and the part it belongs to."""
    stack: list[Open] = []
    for event in sorted(events, key=lambda event: (event.begin, -event.end)):
        while stack and stack[-1].end <= event.begin:
            yield stack.pop()
        opened = Open(event, event.end, REST, event.is_step)
        if stack:
            around = stack[-1]
            opened.end = min(event.end, around.end)
            opened.part = around.part
            opened.in_step |= around.in_step
            around.inside += opened.end - event.begin
        if event.is_part:
            opened.part = event.name
        stack.append(opened)
    yield from reversed(stack)


# -- the record -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class PartTime:
    """What a part of a step takes."""

    name: str
    ms: float  # per step
    share: float  # of the step
    steps: int  # in which it was


@dataclass(frozen=True)
class OperationTime:
    """What an operation takes, without those inside it."""

    name: str
    calls: float  # per step
    ms: float  # per step
    share: float  # of the step


@dataclass(frozen=True)
class StepProfile:
    """Where the steps of a trace go, in the mean."""

    first: int  # update, from 1
    steps: int
    step_ms: float
    parts: tuple[PartTime, ...]  # they add up to the step
    operations: tuple[OperationTime, ...]  # the costliest first
    on_gpu: bool  # the operations are those of a GPU
    unprofiled_ms: float | None = None  # a step before these, where one was timed

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


@dataclass
class StepSums:
    """What is added up over the steps, in microseconds."""

    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # of a part
    operations: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[str] = field(default_factory=Counter)

    def add(self, found: Open) -> None:
        """An event of a step."""
        event = found.event
        self.parts[found.part] += found.own
        if event.is_part or event.is_step:
            self.operations[BETWEEN] += found.own
            return
        self.operations[event.name] += found.own
        self.calls[event.name] += 1

    def take_gpu(self, events: Sequence[TraceEvent], total: float) -> None:
        """Let the operations be those of a GPU, by what launched them; between them it waits."""
        named = {event.operation: event.name for event in events if event.kind == "cpu_op"}
        self.operations.clear()
        self.calls.clear()
        busy = 0.0
        for event in events:
            if event.kind not in ON_A_GPU:
                continue
            name = named.get(event.operation, event.name)
            spent = event.end - event.begin
            self.operations[name] += spent
            self.calls[name] += 1
            busy += spent
        self.operations[BETWEEN] = max(0.0, total - busy)


def step_profile(events: Sequence[TraceEvent], unprofiled_ms: float | None = None) -> StepProfile:
    """Where the steps of a trace go: there is one at least."""
    steps = sorted((event for event in events if event.is_step), key=lambda event: event.begin)
    thread = steps[0].thread
    total = sum(step.end - step.begin for step in steps)
    sums = StepSums()
    for found in nested(event for event in events if event.thread == thread):
        if found.in_step:
            sums.add(found)
    for name in STEP_PARTS:
        sums.steps[name] = steps_with(name, steps, events)
    on_gpu = any(event.kind in ON_A_GPU for event in events)
    if on_gpu:
        sums.take_gpu(events, total)

    return StepProfile(
        first=number_of(steps[0]),
        steps=len(steps),
        step_ms=total / len(steps) / 1000,
        parts=tuple(part_times(sums, len(steps), total)),
        operations=tuple(operation_times(sums, len(steps), total)),
        on_gpu=on_gpu,
        unprofiled_ms=unprofiled_ms,
    )


def number_of(step: TraceEvent) -> int:
    return int(step.name.rpartition(" ")[2])


def steps_with(name: str, steps: Sequence[TraceEvent], events: Iterable[TraceEvent]) -> int:
    """In how many of the steps the part was."""
    found = set()
    for event in events:
        if not event.is_part or event.name != name:
            continue
        for step in steps:
            if step.begin <= event.begin < step.end:
                found.add(step)
    return len(found)


def part_times(sums: StepSums, steps: int, total: float) -> Iterator[PartTime]:
    """The parts in the order in which a step meets them, the rest last."""
    sums.steps[REST] = steps
    for name in (*STEP_PARTS, REST):
        if not sums.steps[name] and name in SOMETIMES:
            continue
        spent = sums.parts[name]
        yield PartTime(
            name=name,
            ms=spent / steps / 1000,
            share=spent / total,
            steps=sums.steps[name],
        )


def operation_times(sums: StepSums, steps: int, total: float) -> Iterator[OperationTime]:
    """The costliest operations."""
    spent = sums.operations
    dearest = sorted(spent, key=lambda name: (-spent[name], name))
    for name in dearest[:MOST_OPERATIONS]:
        yield OperationTime(
            name=name,
            calls=sums.calls[name] / steps,
            ms=spent[name] / steps / 1000,
            share=spent[name] / total,
        )


# -- for people -----------------------------------------------------------------------------------
def table(profile: StepProfile) -> Iterator[str]:
    """The parts, then the operations, a line each."""
    names = [part.name for part in profile.parts]
    names += [operation.name for operation in profile.operations]
    width = min(max(map(len, names)), MOST_CHARACTERS)

    def line(name: str, calls: str, ms: str, share: str) -> str:
        name = name[:width].ljust(width)
        return f"{name}  {calls:>8}  {ms:>10}  {share:>6}"

    yield line("", "", "ms", "share")
    for part in profile.parts:
        told = line(part.name, "", f"{part.ms:.3f}", f"{part.share:.1%}")
        if 0 < part.steps < profile.steps:
            told += f"  in {part.steps} of {profile.steps} steps"
        yield told
    yield line("a step", "", f"{profile.step_ms:.3f}", "100.0%")

    measure = "GPU ms" if profile.on_gpu else "own ms"
    yield line("", "calls", measure, "share")
    for operation in profile.operations:
        calls = f"{operation.calls:.1f}"
        if operation.name == BETWEEN:
            calls = ""
        yield line(operation.name, calls, f"{operation.ms:.3f}", f"{operation.share:.1%}")
