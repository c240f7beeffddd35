"""What sbatch makes of the `#SBATCH` lines of a script: its words, its quotes, its options.

After `_get_argument` of Slurm's src/sbatch/opt.c, and its tables of options: which take a value.
"""

from __future__ import annotations

import sys

VALUED = {
    "array": "a",
    "comment": "",
    "constraint": "C",
    "cpus-per-task": "c",
    "gres": "",
    "job-name": "J",
    "mem": "",
    "nodes": "N",
    "open-mode": "",
    "output": "o",
    "partition": "p",
    "signal": "",
    "time": "t",
}
FLAGS = {"requeue": "", "hold": "H", "spread-job": ""}
EITHER = {"exclusive": ""}  # a value may follow an equals sign
LETTERS = {letter: name for table in (VALUED, FLAGS) for name, letter in table.items() if letter}


class Refusal(Exception):
    """sbatch's."""


def words_of(line: str) -> list[str]:
    """The words behind `#SBATCH`."""
    words, word, quote, begun, escaped = [], "", "", False, False
    for c in line:
        if escaped:
            word, escaped = word + c, False
        elif c == "\\":
            begun = escaped = True
        elif quote:
            word, quote = (word, "") if c == quote else (word + c, quote)
        elif c == "#":
            break
        elif c in "\"'":
            begun, quote = True, c
        elif c.isspace():
            words += [word] if begun else []
            word, begun = "", False
        else:
            word, begun = word + c, True
    return words + ([word] if begun else [])


def options_of(script: str) -> dict[str, str | None]:
    """The options at the head of a script, by long name; of two the last."""
    found: dict[str, str | None] = {}
    for line in script.splitlines()[1:]:
        if not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            read(words_of(line.removeprefix("#SBATCH ")), found)
    return found


def read(words: list[str], found: dict[str, str | None]) -> None:
    """The options among the words of one line; one that is alone stands in the way of no other."""
    words = list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word[:2] != "--":
            letter, value = word[1:2], word[2:]
            if word[:1] != "-" or letter not in LETTERS:
                raise Refusal(f"Invalid directive found in batch script: {word}")
            name, equals = LETTERS[letter], value
        if name not in {**VALUED, **FLAGS, **EITHER}:
            raise Refusal(f"unrecognized option '{word}'")
        if equals and name in FLAGS:
            raise Refusal(f"option '--{name}' doesn't allow an argument")
        if not equals and name in VALUED:
            if not words:
                raise Refusal(f"option '{word}' requires an argument")
            value = words.pop(0)
        if name in ("nodes", "cpus-per-task") and not value.isdecimal():
            raise Refusal(f"invalid number '{value}' for --{name}")
        if name == "exclusive" and value not in ("", "user", "mcs"):
            raise Refusal(f"invalid --exclusive specification '{value}'")
        found[name] = value if equals or name in VALUED else None


if __name__ == "__main__":
    try:
        print(options_of(open(sys.argv[1]).read()))
    except Refusal as refusal:
        sys.exit(f"sbatch: error: {refusal}")
