"""Other systems: no module but those named asks which it is, and studies end with the same bits.

macOS and Windows are this Linux without what they lack (`fake_system`); a Linux without /proc is a
real one, in a mount namespace of its own.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import PACKAGE, PATIENCE, ROOT, RUN, flags
from twins import assert_twins

from nanoscale.store.folder import RunFolder

# Who knows of which matter how systems differ, by the words that ask.
ASKS = {
    "the system": {"processes"},
    "the processor": {"cpu"},
    "processes": {"processes", "signals", "experiments.forkserver"},  # which stands where forks do
    "the compiler": {"processes", "cpu", "model.kernels"},
}
PLATFORM = "system uname release version mac_ver win32_ver win32_edition libc_ver node".split()
PROCESSOR = {"machine", "processor"}
DESCRIBED = {"platform", "python_version"}  # of a record: nothing hangs on them
POSIX = set(
    "fork forkpty killpg setsid setpgid getpgid getpgrp sysconf getloadavg posix_spawn getppid "
    "sched_getaffinity sched_setaffinity set_blocking nice WNOHANG SIGHUP SIGKILL SIGCHLD SIGSTOP "
    "pthread_sigmask pthread_kill uname mkfifo chown statvfs".split()
)
USERS = {"getuid", "geteuid", "getgid"}  # whose the compiled code is
MODULES = {"fcntl", "msvcrt", "winreg", "pwd", "grp", "resource", "termios"}
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [*FILES, *ROOT.glob("*.py"), *ROOT.glob("data/*/*.py"), *ROOT.glob("docs/**/*.py")]


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def docstrings(tree: ast.AST) -> set[ast.AST]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    bodies = [node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and node.body]
    values = {node.value for node in bodies if isinstance(node, ast.Expr)}
    return {value for value in values if isinstance(value, ast.Constant)}


def matter(node: ast.AST) -> str:
    """Of what a node asks how this system does it; "" for nothing."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        of, word = node.value.id, node.attr
        if (of, word) in (("sys", "platform"), ("os", "name")):
            return "the system"
        if of == "platform" and word not in DESCRIBED:
            return "the processor" if word in PROCESSOR else "the system"
        if of in ("os", "signal") and word in POSIX:
            return "processes"
        if of == "os" and word in USERS:
            return "the compiler"
    if isinstance(node, ast.ImportFrom) and node.module in ("os", "signal"):
        return "processes" if {alias.name for alias in node.names} & POSIX else ""
    if isinstance(node, ast.Import) and {alias.name for alias in node.names} & MODULES:
        return "processes"
    if isinstance(node, ast.ImportFrom) and node.module == "nanoscale.processes":
        return "the compiler" if "system" in {alias.name for alias in node.names} else ""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("hasattr", "getattr"):
        return "processes" if getattr(node.args[0], "id", "") in ("os", "signal") else ""
    text = node.value if isinstance(node, ast.Constant) else None
    if isinstance(text, str) and re.match("/(proc|sys)/", text):
        return "the processor" if "cpuinfo" in text else "processes"
    return ""


def asking(text: str) -> list[tuple[str, str]]:
    """Each matter of which a module asks, and where."""
    tree = ast.parse(text)
    told = docstrings(tree)
    asked = [(matter(node), node) for node in ast.walk(tree) if node not in told]
    return [(what, f"line {node.lineno}: {ast.unparse(node)}") for what, node in asked if what]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_one_module_for_each_matter_asks_for_the_system(file):
    for what, where in asking(file.read_text(encoding="utf-8")):
        assert name_of(file) in ASKS[what], f"{where}: {what} is for {sorted(ASKS[what])}"


@pytest.mark.parametrize(
    "line",
    [
        "sys.platform == 'linux'",
        "os.name == 'nt'",
        "platform.system()",
        "platform.machine()",
        "open('/proc/self/stat')",
        "Path('/sys/fs/cgroup/cpu.max')",
        "os.fork()",
        "os.sched_getaffinity(0)",
        "os.getuid()",
        "signal.SIGKILL",
        "hasattr(os, 'getloadavg')",
        "from os import fork",
        "import fcntl",
        "from nanoscale.processes import system",
    ],
)
def test_who_asks_is_found(line):
    assert asking(line)
    assert not asking(f'"""{line}"""')


# -- encodings ----------------------------------------------------------------------------------
OPENING = {"open", "fdopen", "read_text", "write_text"}
MODE = re.compile(r"[rwax][bt+]*")


def unsaid(node: ast.AST) -> bool:
    """Whether a call opens text, or a process's, without saying in which encoding."""
    if not isinstance(node, ast.Call):
        return False
    said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if "encoding" in said or None in said:
        return False
    if said.get("text") == "True":
        return True
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name not in OPENING:
        return False
    constants = [a.value for a in node.args if isinstance(a, ast.Constant)]
    modes = [value for value in constants if isinstance(value, str) and MODE.fullmatch(value)]
    if isinstance(node.func, ast.Attribute):  # of a path; ours, a formatter's and os's are others
        of = ast.unparse(node.func.value)
        if name == "open":
            return bool(modes) and "b" not in modes[0]
        if name != "fdopen":
            return of not in ("formatter", "files")
    elif name != "open":
        return False
    return not (modes and "b" in modes[0])


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_text_is_opened_in_an_encoding_that_is_said(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if unsaid(node)]
    assert not [f"line {node.lineno}: {ast.unparse(node)}" for node in calls]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("open(path)", True),
        ("open(path, 'a')", True),
        ("path.open('w')", True),
        ("path.read_text()", True),
        ("os.fdopen(1, 'w')", True),
        ("subprocess.run(command, text=True)", True),
        ("open(path, 'rb')", False),
        ("open(path, encoding='utf-8')", False),
        ("Study.open(folder)", False),
        ("write_text(path, text)", False),
    ],
)
def test_an_encoding_that_is_not_said_is_found(line, found):
    assert unsaid(ast.parse(line, mode="eval").body) == found


# -- as on them -----------------------------------------------------------------------------------
EXACT = RUN | {"kernels": "torch", "max_iters": 120, "eval_interval": 20, "eval_iters": 1}
STUDY = """
[study]
recipe = "grid"
name = "seeds"
[base]
{base}
[grid]
seed = [1, 2]
"""
NO_PROC = 'mount -t tmpfs none /proc && cd "$1" && shift && exec "$@"'


class Machine:
    """Starts `nanoscale` in the folder of a test as another system would have it."""

    def __init__(self, name: str, desk: Path) -> None:
        self.name = name
        self.desk = desk
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if name in ("Darwin", "Windows"):
            place = desk / "faked"
            place.mkdir()
            shutil.copy(ROOT / "tests" / "fake_system.py", place / "sitecustomize.py")
            self.environment |= {"FAKED_SYSTEM": name, "PYTHONPATH": f"{place}:{ROOT}"}
            self.environment |= {"PYTHONIOENCODING": "cp1252"}  # of a console there

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "nanoscale", *arguments]
        if self.name == "no /proc":
            command = ["unshare", "-Urm", "sh", "-c", NO_PROC, "sh", str(self.desk), *command]
        return subprocess.Popen(
            command,
            cwd=self.desk,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        said, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, said


def may_hide_proc() -> bool:
    if not shutil.which("unshare"):
        return False
    command = ["unshare", "-Urm", "sh", "-c", NO_PROC, "sh", "/", "true"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def machine(request, desk: Path) -> Machine:
    if request.param == "no /proc" and not may_hide_proc():
        pytest.skip("no mount namespace may be made here")
    return Machine(request.param, desk)


def on_all(sample: str = "") -> pytest.MarkDecorator:
    """Every system, of which `make test` tries the sample: each takes some starts of torch."""
    tried = []
    for name in ("Darwin", "Windows", "no /proc"):
        mark = pytest.mark.slow if name == sample else pytest.mark.soak
        tried.append(pytest.param(name, marks=mark))
    return pytest.mark.parametrize("machine", tried, indirect=True)


def steps(folder: Path) -> int:
    return RunFolder(folder).status().step if (folder / "status.json").exists() else 0


def wait_until(true, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


@on_all()
def test_a_run_is_killed_and_goes_on_and_has_one_owner(machine):
    long = flags(EXACT | {"max_iters": 300, "eval_interval": 50})
    process = machine.start("train", *long, "--out_dir=out")
    wait_until(lambda: steps(machine.desk / "out") > 100, process)
    code, said = machine.run("train", *long, "--out_dir=out")
    assert code == 2, said
    assert f"error: out: process {process.pid} on" in said
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    code, said = machine.run("train", *long, "--out_dir=out")
    assert (code, "COMPLETE: results in" in said) == (0, True), said
    code, said = machine.run("train", *long, "--out_dir=twin")
    assert code == 0, said
    assert_twins(RunFolder(machine.desk / "out"), RunFolder(machine.desk / "twin"))


@on_all()
def test_a_study_is_stopped_and_goes_on_to_the_bits_of_a_fork_server(machine):
    base = "\n".join(f"{key} = {value!r}" for key, value in EXACT.items())
    base = base.replace("False", "false").replace("True", "true")
    (machine.desk / "seeds.toml").write_text(STUDY.format(base=base), encoding="utf-8")
    here = machine.desk / "experiments_out" / "runs"

    process = machine.start("study", "seeds.toml", "--workers=2")
    wait_until(lambda: sum(steps(path) > 10 for path in here.glob("*")) == 2, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert {RunFolder(path).status().state for path in here.glob("*")} <= {"WAITING", "COMPLETE"}

    code, said = machine.run("study", "seeds.toml", "--workers=2")
    assert code == 0, said
    assert "2 COMPLETE" in said
    if machine.name == "no /proc":  # there torch itself knows its CPU no more
        return
    plain = Machine("Linux", machine.desk)
    code, said = plain.run("study", "seeds.toml", "--workers=2", "--output_root=forked")
    assert code == 0, said
    for path in here.glob("*"):
        assert_twins(RunFolder(path), RunFolder(machine.desk / "forked" / "runs" / path.name))
