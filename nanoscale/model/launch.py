"""What torchrun tells a process: that it is one of many. Nothing here loads torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from nanoscale.errors import UserError

# What a launcher sets for its own processes and not for those that they start, but TORCHELASTIC_*.
LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_NAME",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
ELASTIC = "TORCHELASTIC_"
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # of one process of many
LAST_PORT = 65535


@dataclass(frozen=True)
class Launch:
    """A process's number among all of its run and on its machine, and how many there are."""

    rank: int = 0
    world: int = 1
    local: int = 0


def launched() -> Launch:
    """How this process was launched; without WORLD_SIZE, or with 1, it is alone.

    Raises:
        UserError: a variable is missing, or no number that it can be.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f"WORLD_SIZE={text}: expected the number of processes, as torchrun sets it; "
            "unset WORLD_SIZE to train in this one"
        )
    world = int(text)
    if world == 1:
        return Launch()

    remedy = f"start with torchrun --nproc_per_node={world}, or unset WORLD_SIZE"
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise UserError(f"WORLD_SIZE={world} without {', '.join(missing)}: {remedy}")
    _number("MASTER_PORT", 1, LAST_PORT, remedy)
    rank = _number("RANK", 0, world - 1, remedy)
    return Launch(rank, world, _number("LOCAL_RANK", 0, world - 1, remedy))


def _number(name: str, least: int, most: int, remedy: str) -> int:
    text = os.environ[name]
    if not text.isdecimal() or not least <= int(text) <= most:
        raise UserError(f"{name}={text}: expected a number from {least} to {most}; {remedy}")
    return int(text)


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that is to be alone, whoever launched the one that starts it."""
    return {
        name: value
        for name, value in environment.items()
        if name not in LAUNCHER_VARIABLES and not name.startswith(ELASTIC)
    }
