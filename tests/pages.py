"""A page of the docs, run as a reader would: its blocks in order, in one working folder.

- ```sh: every command runs, shortened by flags alone. Of `train.py` and `sample.py` runs are tiny;
  of a study they are `page_worker`'s, in milliseconds. `SKIPPED` says what does not run, and why.
- ```python: runs, in one namespace.
- ```toml: parses; with a `recipe` it is a whole study file, which `study --dry-run` takes.
- A python or toml block whose first line is a comment of a file's name (`# mine.py`) is that file.
- A block without a language right below an ```sh block is its output. Its lines are printed where
  the commands read nothing but committed files (docs/results); so are lines that begin with
  `error: `, where a command is refused. One that begins with `fail: ` lets a verdict fail.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from tiny import PATIENCE, ROOT, flags, warm_process

from nanoscale.data.prepare import prepare
from nanoscale.errors import BAD_INPUT, DONE, FAILURE, INCONCLUSIVE

SMALL = {
    "max_iters": 2,
    "lr_decay_iters": None,
    "device": "cpu",
    "compile": False,
    "batch_size": 2,
    "block_size": 64,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "eval_iters": 1,
    "final_eval_tokens": 64,
    "threads": 1,
}
LENGTHS = ("--max_tokens=", "--max_flops=", "--tokens_per_param=")  # which the small one replaces
SHAPE = ("--n_layer=", "--n_head=", "--n_embd=")
SHORTER = {
    "train": flags(SMALL),
    "sample": ["--num_samples=1", "--max_new_tokens=5"],
    "coord-check": ["--steps=2", "--seeds=1"],
}
DOORS = {"train.py": "train", "sample.py": "sample", "bench.py": "bench"}  # python X is nanoscale Y
GIVEN = ("shakespeare_char", "shakespeare", "pysource", "openwebtext")
TRAINED = ("out-shakespeare-char", ["train", "config/train_shakespeare_char.py", *SHORTER["train"]])
VARIABLES = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
REFUSED, FAILED = "error: ", "fail: "  # beginnings of lines that are shown
SKIPPED = {  # a pattern of commands -> why they do not run here
    r"^make\b|^python3 -m venv|^\. ": "it makes an environment",
    r"^pip install|^git clone|^apt": "it downloads",
    r"data prepare (shakespeare|openwebtext|fineweb-edu|tinystories|hub:)": "it downloads",
    r"[= ]gpt2\b|eval_gpt2|finetune_shakespeare|--init_from=\w+/": "it downloads",
    r"--wandb|--trackio|=wandb|=trackio|^wandb |^trackio ": "an account, or a network",
    r"^optuna-dashboard|^tensorboard |--serve|nanoscale watch": "it goes on until it is stopped",
    r"^(sbatch|srun|squeue|scancel|ssh|rsync|ray) ": "a cluster",
    r"--backend=(slurm|ray)": "a cluster",
    r"^(docker|podman|apptainer|singularity) ": "a container",
    r"^torchrun|--nproc": "several processes; tests/model/test_distributed.py",
    r"^nvidia-smi|--device=cuda": "a GPU",
    r"python docs/results/|--peer": "it measures for minutes",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, its line, and the output that is shown below it."""

    language: str
    text: str
    line: int
    output: str = ""

    @property
    def file(self) -> str | None:
        """The name of the file that it is, if its first line says one."""
        named = re.match(r"# ([\w.-]+\.(?:py|toml))\n", self.text)
        return named[1] if named else None

    @property
    def commands(self) -> list[str]:
        """Its commands, continued lines joined, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in map(str.strip, lines) if line and not line.startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page that have a language, in order."""
    text = page.read_text(encoding="utf-8")
    fence = r"^```([\w{}-]+)[^\n]*\n(.*?)^```\n(?:\n?^```\n(.*?)^```$)?"
    fences = re.finditer(fence, text + "\n", re.DOTALL | re.MULTILINE)
    return [Block(f[1], f[2], text.count("\n", 0, f.start()) + 1, f[3] or "") for f in fences]


def reason_to_skip(command: str) -> str | None:
    """Why a command does not run here; None: it does."""
    reasons = (why for pattern, why in SKIPPED.items() if re.search(pattern, command))
    return next(reasons, None)


def endings(shown: str) -> set[int]:
    """The exit codes of commands of which that is shown; a verdict on tiny runs may be open."""
    codes = {DONE, INCONCLUSIVE}
    for beginning, code in ((REFUSED, BAD_INPUT), (FAILED, FAILURE)):
        if any(line.startswith(beginning) for line in shown.splitlines()):
            codes.add(code)
    return codes


def small_data(folder: Path) -> Path:
    """Data sets that every desk has: a small one under the names of others, and synthetic."""
    text = folder / "text.txt"
    text.write_text((ROOT / "README.md").read_text(encoding="utf-8") * 20, encoding="utf-8")
    for name in GIVEN:
        prepare("text", input=str(text), tokenizer="char", out=folder / "data" / name)
    prepare("synthetic", out=folder / "data" / "synthetic")
    return folder / "data"


def desk_in(folder: Path, data: Path) -> Path:
    """A working folder like a clone, with small data under the names that pages use."""
    for path in ROOT.iterdir():
        if path.suffix in (".py", ".md", ".toml") or path.name in ("config", "docs"):
            (folder / path.name).symlink_to(path)
    shutil.copytree(data, folder / "data")
    shutil.copy(data.parent / "text.txt", folder / "my.txt")  # a reader's own
    (folder / "studies").mkdir()
    check = re.compile(r"^\[forecast\.check\][^\n]*\n(?:(?!\[).*\n)*", re.MULTILINE)
    for path in (ROOT / "studies").glob("*.toml"):
        text = check.sub("", path.read_text(encoding="utf-8"))  # it needs statistics of real runs
        (folder / "studies" / path.name).write_text(text, encoding="utf-8")
    return folder


@dataclass
class Reader:
    """Who does at a desk what a page says; `said` is what each command printed."""

    desk: Path
    said: dict[str, str] = field(default_factory=dict)
    python: subprocess.Popen[str] | None = None

    def read(self, page: Path) -> None:
        """Do all of it.

        Raises:
            AssertionError: a block does not do what the page says; with the page and the line.
        """
        try:
            for block in blocks_of(page):
                self.do(block)
        except AssertionError as e:
            raise AssertionError(f"{page}:{block.line}: {e}") from None
        finally:
            self.end()

    def do(self, block: Block) -> None:
        """Do what one block says."""
        if block.language in ("python", "toml") and block.file:
            (self.desk / block.file).write_text(block.text, encoding="utf-8")
        if block.language == "sh":
            for command in block.commands:
                if reason_to_skip(command) is None:
                    self.said[command] = self.run(command, block.output)
            self.compare(block)
        elif block.language == "python" and not block.file:
            self.execute(block.text)
        elif block.language == "toml":
            self.plan(block)

    def run(self, command: str, shown: str) -> str:
        """What a command prints, once it has ended as what is `shown` of it says."""
        words = shlex.split(command, comments=True)
        if words[0] == "python" and words[1] in DOORS:
            words = ["nanoscale", DOORS[words[1]], *words[2:]]
        if words[0] != "nanoscale" or re.search(r"[|<>;&$]", re.sub(r"'.*?'|\".*?\"", "", command)):
            return self.shell(command, shown)
        verb, *rest = words[1:]
        self.need(verb, rest)
        if verb == "train":
            rest = [word for word in rest if not word.startswith(LENGTHS)]
        shorter = SHORTER.get(verb, [])
        if verb == "train" and "--init_from=" in command:
            shorter = [word for word in shorter if not word.startswith(SHAPE)]  # the weights say it
        printed = self.nanoscale([verb, *rest, *shorter], shown)
        if "--dry-run" in rest:
            timed = r" on \d+ workers?|nothing to do|: \d+ cached\n"
            assert re.search(timed, printed), f"no time: {printed}"
        return printed

    def nanoscale(self, arguments: list[str], shown: str = "") -> str:
        """What `nanoscale ARGUMENTS` prints; our worker trains what studies ask for."""
        variables = os.environ | VARIABLES
        if arguments[0] in ("study", "next", "retry"):
            variables["STAND_IN"] = "page_worker"
        code, out, err = warm_process()(arguments, self.desk, variables)
        assert code in endings(shown), f"nanoscale {shlex.join(arguments)}: exit {code}: {err}"
        return out + (err if code == BAD_INPUT else "")

    def shell(self, command: str, shown: str) -> str:
        """What a line of the shell prints, with our program on its path."""
        programs = self.desk / ".programs"
        programs.mkdir(exist_ok=True)
        for name, what in (("nanoscale", "-m nanoscale"), ("python", "")):
            (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {what} "$@"\n')
            (programs / name).chmod(0o755)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.desk,
            env=os.environ | VARIABLES | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode in endings(shown), f"{command}: {done.stderr}"
        return done.stdout + (done.stderr if done.returncode == BAD_INPUT else "")

    def need(self, verb: str, arguments: list[str]) -> None:
        """Make what a command reads and the page has not made: a run, a study of ours."""
        folder, train = TRAINED
        named = verb != "train" and any(folder in word for word in arguments)
        if named and not (self.desk / folder).exists():
            self.nanoscale(train)
        for name in {word.partition(":")[0] for word in arguments}:
            file = self.desk / "studies" / f"{name}.toml"
            if file.is_file() and not (self.desk / "experiments_out" / name).exists():
                self.nanoscale(["study", str(file)])

    def execute(self, code: str) -> None:
        """Run a block of Python after those before it."""
        errors = self.desk / ".errors"
        if self.python is None:
            with errors.open("w") as file:
                self.python = subprocess.Popen(
                    [sys.executable, str(ROOT / "tests" / "page_worker.py")],
                    cwd=self.desk,
                    env=os.environ | VARIABLES,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    text=True,
                )
        assert self.python.stdin is not None
        assert self.python.stdout is not None
        self.python.stdin.write(json.dumps(code) + "\n")
        self.python.stdin.flush()
        assert self.python.stdout.readline(), errors.read_text()

    def end(self) -> None:
        """End the process of the blocks of Python."""
        if self.python is not None:
            self.python.communicate()

    def plan(self, block: Block) -> None:
        """Parse a block of TOML; a whole study file is planned."""
        values = tomllib.loads(block.text)
        if "recipe" in values.get("study", {}):
            file = self.desk / (block.file or f"line-{block.line}.toml")
            file.write_text(block.text, encoding="utf-8")
            self.nanoscale(["study", str(file), "--dry-run"])

    def compare(self, block: Block) -> None:
        """What a page shows below its commands is what they print, where that can be the same."""
        printed = "".join(self.said.get(command, "") for command in block.commands)
        same = all("docs/results/" in command for command in block.commands)
        for line in block.output.splitlines():
            if same or line.startswith(REFUSED):
                assert line.strip("… ").rstrip(".") in printed, f"not printed: {line}"
