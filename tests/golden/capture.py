"""What the command line says and writes, case by case, so that two trees can be compared.

    python tests/golden/capture.py OUT_DIR [--package-root DIR] [--only NAME] [--subprocess]

writes one JSON file per case of `cases.py`; captures of two trees on one machine are compared with
`diff -r`, and `tests/test_golden.py` compares with the files in `expected/`. The command line is
the interface: nothing of the package is imported here. Commands run in forks of one process that
has loaded the heavy libraries (`--subprocess`: each in a new interpreter, which takes longer).

Only what cannot be equal is replaced, by `<tmp>`, `<root>`, `<time>` and the like: see below.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import gc
import hashlib
import importlib
import io
import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TIMEOUT = 1200.0  # seconds until a command counts as hanging
WARM = [
    ["fit", "none.csv"],
    ["plan", "none.csv", "--budget=1"],
    ["design", "none.csv"],
    ["transfer", "none.csv"],
    ["compare", "none", "none"],
    ["study", "none.toml"],
    ["params", "--n_layer=0"],
    ["bench", "--help"],
    ["sample", "--help"],
    ["coord-check", "--help"],
    ["data", "prepare", "none"],
    ["train", "--dataset=none"],
]
FEW = 0.5  # where fewer of a fit's starts agree, rounding decides how many
LONG_LIST = 24  # numbers; longer lists are told by their ends, their mean and a digest

# Keys of JSON whose values differ between two runs of one code on one machine, or between machines.
TIMES = {
    "wall_seconds",
    "time_ms",
    "tokens_per_second",
    "mfu",
    "updated",
    "began",
    "started",
    "seconds",
}
PLACES = {
    "provenance",
    "host",
    "pid",
    "device_name",
    "git_commit",
    "git_dirty",
    "packages",
    "python",
    "platform",
    "torch",
    "instructions",
    "compiler",
}
TIMED_COLUMNS = {"tokens_per_second", "mfu", "wall_seconds", "tokens/s"}
TIMED_VERBS = {"train", "run", "study", "retry", "coord-check", "bench", "watch", "report"}
TEXT_TIMES = [  # in what the verbs above print
    (r"time [\d.]+ms", "time <time>"),
    (r", mfu [\d.]+%", ""),
    (r"eta [\d.]+[hms]", "eta <time>"),
    (r"\b\d+ h \d\d min\b", "<time>"),
    (r"\b\d+ min \d\d s\b", "<time>"),
    (r"(?<![\w.=])\d+\.\d s\b", "<time>"),
    (r"(\(\d+/\d+, )(?:time left unknown|<time> left|<time> in all)\)", r"\1<time>)"),
    (r"time per iteration: [\d.]+ms, MFU: .*", "time per iteration: <time>"),
    (r"( on )[^\n]*?( in (?:float32|bfloat16|float16), )", r"\1<device>\2"),
    (r"(, (?:eager|compiled), (?:float32|bfloat16) on )[^\n]*", r"\1<device>"),
    (r"\bprocess \d+ on \S+ is", "process <pid> is"),
]
TICK = re.compile(  # only of runs that last half a minute, and of fits that last two seconds
    r"^\[.*\] \d+/\d+ done, .* FLOPs, .*$"
    r"|^\[[\w-]+\] [\d,]+ of [\d,]+ [a-z -]+(, [\d.]+ %, eta .*)?$"
)
STYLES: dict[str, Callable[[Any], str]] = {  # how JSON files may be laid out
    "indent 2": lambda value: json.dumps(value, indent=2) + "\n",
    "indent 1": lambda value: json.dumps(value, indent=1) + "\n",
    "rows": lambda rows: "".join(json.dumps(r, separators=(",", ":")) + "\n" for r in rows),
}


# -- one command --------------------------------------------------------------------------------
def environment(root: Path) -> dict[str, str]:
    """The environment of a command: this package, one thread, a plain terminal, fixed hashes."""
    return os.environ | {
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        "LINES": "40",
        "PYTHONHASHSEED": "0",
        "TERM": "dumb",
        "MPLBACKEND": "agg",
        "PYTHONWARNINGS": "default",
    }


class Runner:
    """Runs `nanoscale ARGV` in a folder; forks of one warm process, or new interpreters."""

    def __init__(self, root: Path, warm: bool = True) -> None:
        self.root, self.warm = root.resolve(), warm
        self.process: subprocess.Popen[str] | None = None
        self.seconds = 0.0  # of the processor, of all forks so far

    def __enter__(self) -> Runner:
        if self.warm:
            command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(self.root),
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.communicate()  # its input ends, and so does it

    def __call__(
        self, argv: Sequence[str], cwd: Path, variables: Mapping[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Exit code, standard output and standard error; `variables` are the whole environment."""
        variables = environment(self.root) if variables is None else dict(variables)
        if self.process is None:
            done = subprocess.run(
                [sys.executable, "-m", "nanoscale", *argv],
                cwd=cwd,
                text=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT,
                env=variables,
            )
            return done.returncode, done.stdout, done.stderr
        with tempfile.TemporaryDirectory() as name:
            files = [str(Path(name, stream)) for stream in ("out", "err")]
            job = {"argv": list(argv), "cwd": str(cwd), "files": files, "env": variables}
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
            if not answer:
                raise RuntimeError(f"the warm process died at {' '.join(argv)}")
            out, err = (Path(f).read_text(encoding="utf-8", errors="replace") for f in files)
        code, seconds = json.loads(answer)
        self.seconds += seconds
        return code, out, err


def serve() -> None:
    """The warm process: a line of JSON per command on its input, an exit code each as answer."""
    import matplotlib.figure
    import numpy
    import pandas
    import torch._dynamo

    assert all((matplotlib, numpy, pandas, torch))  # loaded once, for all the forks
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        for argv in WARM:
            code_of(argv)  # loads what a verb needs, whatever its modules are called
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            become(job)
        print(json.dumps(end_of(pid)), flush=True)


def end_of(pid: int) -> tuple[int, float]:
    """Exit code and processor time of a fork, which is killed when it takes too long."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        time.sleep(0.005)
    os.kill(pid, 9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), TIMEOUT


def become(job: Mapping[str, Any]) -> NoReturn:
    """Turn this fork into `python -m nanoscale ARGV`."""
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in zip((1, 2), job["files"], strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.path[0] = job["cwd"]
    if name := os.environ.get("STAND_IN"):  # a module of the tests whose worker trains
        sys.path.append(str(HERE.parent))
        importlib.import_module(name).install()
    code = code_of(job["argv"])
    threading._shutdown()  # the end of an interpreter, without half a second of tearing torch down
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def code_of(argv: Sequence[str]) -> int:
    """Run `python -m nanoscale ARGV` here; its exit code."""
    sys.argv = ["nanoscale", *argv]
    try:
        runpy.run_module("nanoscale", run_name="__main__", alter_sys=True)
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
            return 1
        return e.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


# -- one case -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """Commands in one scratch folder, one after another, and what is recorded of them.

    kind: `exact` (arithmetic), `error`, `help`, `train` (what training gives, which rounds
    differently on other CPUs) or `search` (fits of what training gives). files: text by name,
    made before the first command; None is a folder, `repo:PATH` a copy of the repository's file,
    `tiny:` a data set of characters in nanoGPT's format. whole: whether every run folder's files
    are recorded, not only those of the first.
    """

    name: str
    commands: Sequence[Sequence[str]]
    kind: str = "exact"
    files: Mapping[str, str | None] | None = None
    soak: bool = False
    whole: bool = True
    keys_only: bool = False  # of standard output: numbers are left out


def run_case(case: Case, run: Runner) -> dict[str, Any]:
    """The record of a case: its name, kind and steps, each with what it changed."""
    scratch = Path(tempfile.mkdtemp(prefix="golden-")).resolve()
    try:
        return {"case": case.name, "kind": case.kind, "steps": list(steps(case, run, scratch))}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def steps(case: Case, run: Runner, scratch: Path) -> Iterator[dict[str, Any]]:
    normal = Normal(scratch, run.root)
    lay_out(scratch, case.files or {}, run.root)
    for argv in case.commands:
        before = snapshot(scratch)
        code, out, err = run(argv, scratch)
        after = snapshot(scratch)
        changed = [name for name in sorted(after) if after[name] != before.get(name)]
        timed = argv[:1] and argv[0] in TIMED_VERBS
        step = {
            "argv": [normal.text(a) for a in argv],
            "exit": code,
            "stdout": normal.lines(out, timed),
            "stderr": normal.lines(err, timed),
        }
        if case.keys_only:
            step["stdout"] = [re.sub(r"[\d.,%]+", "#", line) for line in step["stdout"]]
        gone = sorted(before.keys() - after.keys())
        yield step | {
            "changed": [normal.text(name) for name in changed],
            **({"gone": gone} if gone else {}),
            "files": contents(scratch, changed, normal, case.whole),
        }


def lay_out(scratch: Path, files: Mapping[str, str | None], root: Path) -> None:
    """Write a case's own files."""
    for name, text in files.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.mkdir(exist_ok=True)
        elif text == "tiny:":
            tiny_data(path)
        elif text.startswith("repo:"):
            shutil.copyfile(root / text.removeprefix("repo:"), path)
        else:
            path.write_text(text, encoding="utf-8")


def tiny_data(folder: Path) -> None:
    """A data set of 11 characters, as the other tests have it."""
    text = "the cat sat on the mat, the dog sat on the log.\n" * 40
    symbols = sorted(set(text))
    ids = {c: i for i, c in enumerate(symbols)}
    folder.mkdir(exist_ok=True)
    cut = len(text) * 9 // 10
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        tokens = b"".join(ids[c].to_bytes(2, "little") for c in part)
        (folder / f"{split}.bin").write_bytes(tokens)
    meta = {"vocab_size": len(symbols), "itos": dict(enumerate(symbols)), "stoi": ids}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta, protocol=4))


def snapshot(folder: Path) -> dict[str, str]:
    """Name -> digest of every file below a folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def contents(scratch: Path, names: Sequence[str], normal: Normal, whole: bool) -> dict[str, Any]:
    """Name -> what is recorded of each file that a command made or changed."""
    runs = sorted({m[0] for name in names if (m := re.match(r".*?runs/[^/]+/", name))})
    if not whole:  # the first run folder stands for all
        names = [n for n in names if not any(n.startswith(r) for r in runs[1:])]
    return {
        name: found for name in names if (found := recorded(scratch / name, normal)) is not None
    }


def recorded(path: Path, normal: Normal) -> Any:
    """A file's content as it is recorded, None where its name is enough."""
    if path.suffix in (".json", ".jsonl"):
        return json_content(path.read_text(encoding="utf-8"), path.suffix == ".jsonl", normal)
    if path.suffix == ".csv":
        return csv_content(path.read_text(encoding="utf-8"), normal)
    if path.suffix == ".html":
        return normal.lines("\n".join(page_text(path.read_text(encoding="utf-8"))), True)
    if path.suffix == ".bin" and path.name != "ckpt.bin":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def json_content(text: str, rows: bool, normal: Normal) -> dict[str, Any]:
    """The layout of a JSON file and its value, normalised; keys keep their order."""
    try:
        value = [json.loads(line) for line in text.splitlines()] if rows else json.loads(text)
    except ValueError:
        return {"layout": "not JSON", "value": text[:200]}
    layout = next(
        (
            name
            for name, style in STYLES.items()
            if (name == "rows") == rows and style(value) == text
        ),
        "other",
    )
    return {"layout": layout, "value": normal.value(value)}


def csv_content(text: str, normal: Normal) -> list[str]:
    """The lines of a table without its timed columns' values."""
    head, *rows = csv.reader(io.StringIO(text))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow(
            [
                "<time>" if key in TIMED_COLUMNS and cell else normal.text(cell)
                for key, cell in zip(head, row, strict=False)
            ]
        )
    return out.getvalue().splitlines()


# -- what cannot be equal -----------------------------------------------------------------------
class Normal:
    """Replaces what depends on where and when a command ran."""

    def __init__(self, scratch: Path, root: Path) -> None:
        self.places = [
            (str(scratch), "<tmp>"),
            (str(root), "<root>"),
            (str(Path(sys.prefix)), "<python>"),
            (sys.executable, "<python>"),
        ]

    def text(self, text: str) -> str:
        for place, name in self.places:
            text = text.replace(place, name)
        text = re.sub(r"(\d+) of (\d+) starts agree", told_if_many, text)
        return re.sub(r"[^\s`]+ -m nanoscale\b", "nanoscale", text)  # by what is on the PATH

    def lines(self, text: str, timed: bool) -> list[str]:
        """A stream's lines; of an uncaught error the last line alone, as frames may move."""
        text = self.text(text)
        if timed:
            for pattern, instead in TEXT_TIMES:
                text = re.sub(pattern, instead, text)
        found = [line for line in text.split("\n") if not TICK.match(line)]
        if any(line.startswith("Traceback (most recent") for line in found):
            return ["<traceback>", *[line for line in found if line.strip()][-1:]]
        return found[:-1] if found and not found[-1] else [*found, "<no newline>"]

    def value(self, value: Any, key: str = "") -> Any:
        if key in TIMES and isinstance(value, (int, float)):
            return "<time>"
        if key in PLACES and value is not None:
            return "<place>"
        if key == "agreement_of_starts" and value < FEW:
            return "<few>"
        if isinstance(value, dict) and value.keys() == {"run", "text"}:  # what a model writes
            return value | {"text": "<place>"}
        if isinstance(value, dict):
            return {k: self.value(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return shortened([self.value(v) for v in value])
        return self.text(value) if isinstance(value, str) else value


def told_if_many(agreement: re.Match[str]) -> str:
    """How many starts agree, `<few>` of few."""
    count, starts = map(int, agreement.groups())
    return agreement[0] if count >= FEW * starts else f"<few> of {starts} starts agree"


def shortened(values: list[Any]) -> Any:
    """Long lists of numbers by their ends, mean size and digest; lists of lists alike."""
    flat = list(numbers_in(values))
    if len(flat) <= LONG_LIST or None in flat:
        return values
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
    mean = sum(map(abs, flat)) / len(flat)
    return {
        "long list": len(values),
        "numbers": len(flat),
        "ends": [*flat[:3], *flat[-3:]],
        "mean size": mean,
        "digest": digest,
    }


def numbers_in(values: Any) -> Iterator[Any]:
    """The numbers of nested lists in order; a None for what is none."""
    for value in values:
        if isinstance(value, list):
            yield from numbers_in(value)
        else:
            real = isinstance(value, (int, float)) and not isinstance(value, bool)
            yield value if real else None


UNSEEN = ("svg", "style", "script")
OF_THE_DAY = ("facts", "text", "provenance")


class Page(HTMLParser):
    """A page's text outside of drawings, scripts and styles, and without what is of the machine: a
    line per element, a table's row in one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.hidden = 0
        self.places: list[bool] = []  # of each paragraph and section that is open
        self.row: list[str] | None = None
        self.head: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        where = dict(attrs).get("class")  # what is of this machine and this day
        self.hidden += tag in UNSEEN or (tag in ("p", "section") and where in OF_THE_DAY)
        self.places += [where in OF_THE_DAY] if tag in ("p", "section") else []
        if tag == "tr":
            self.row = []
        elif tag in ("td", "th") and self.row is not None:
            self.row.append("")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in UNSEEN or (tag in ("p", "section") and self.places.pop())
        if tag == "tr" and self.row is not None:
            self.head = self.head if self.head and len(self.head) == len(self.row) else self.row
            cells = [
                "<time>" if key in TIMED_COLUMNS and cell != key and cell != "\u2013" else cell
                for key, cell in zip(self.head, self.row, strict=True)
            ]
            self.found.append(" | ".join(cells))
            self.row = None

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if self.hidden or not text:
            return
        if self.row:
            self.row[-1] += text
        elif self.row is None:
            self.found.append(text)


def page_text(html: str) -> list[str]:
    """The text of a report."""
    page = Page()
    page.feed(html)
    return page.found


# -- the command line ---------------------------------------------------------------------------
def write(folder: Path, record: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{record['case']}.json").write_text(text, encoding="utf-8")


def main() -> int:
    if sys.argv[1:] == ["--serve"]:
        serve()
        return 0
    from cases import CASES

    parser = argparse.ArgumentParser(description="Record what the command line does, case by case.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--package-root", type=Path, default=ROOT)
    parser.add_argument("--only", help="cases whose names contain this")
    parser.add_argument("--subprocess", action="store_true", help="a new interpreter per command")
    asked = parser.parse_args()
    with Runner(asked.package_root, warm=not asked.subprocess) as run:
        for case in CASES:
            if asked.only is None or asked.only in case.name:
                began, used = time.monotonic(), run.seconds
                write(asked.out, run_case(case, run))
                print(
                    f"{time.monotonic() - began:6.1f} s, processor {run.seconds - used:6.1f} s"
                    f"  {case.name}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
