"""The house: who may import whom, who may import torch, what has which name."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
from pathlib import Path

import pytest
from tiny import PACKAGE, ROOT, run_python

# From the bottom up: a folder imports the rows before its own, and within its row itself alone.
ROWS = [
    {"errors", "signals", "paths", "processes", "cpu"},
    {"spec", "data", "store", "model"},
    {"training", "experiments", "laws", "checks"},
    {"report"},
    {"studies"},
    {"commands"},
]
# What is allowed within a row: a run folder and a model are made from a config and its data.
WITHIN = {
    ("errors", "paths"),
    ("cpu", "processes"),
    ("store", "spec"),
    ("store", "data"),
    ("model", "spec"),
    ("model", "data"),
}
# Above the row of a run, only the verbs start one, and `report` draws what `laws` and `checks` say.
NEVER = {("report", "training"), ("studies", "training"), ("studies", "model")}
ROW = {folder: number for number, row in enumerate(ROWS) for folder in row}
TORCH = {"model", "training"}
GROUND = ROWS[0]
ROOT_MODULES = {"__init__", "__main__"} | GROUND
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(f.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): f
    for f in FILES
    if f != PACKAGE / "__init__.py"
}


@functools.cache
def imports(module: str) -> set[str]:
    """What a module imports, anywhere in it: `torch`, or our modules as in MODULES."""
    file = MODULES[module]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.removeprefix("nanoscale.") for name in found if name.startswith("nanoscale.")}
    known = {name if name in MODULES else name.rpartition(".")[0] for name in ours} - {""}
    return known | ({"torch"} if any(n.split(".")[0] == "torch" for n in found) else set())


def top(module: str) -> str:
    return module.split(".")[0]


# --- who imports whom --------------------------------------------------------------------------


def test_the_package_has_eleven_folders_and_seven_modules():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders == set().union(*ROWS) - GROUND
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT_MODULES
    assert all(file.parent in (PACKAGE, PACKAGE / file.parent.name) for file in FILES)


@pytest.mark.parametrize("module", MODULES)
def test_a_folder_imports_the_rows_below_its_own(module):
    ours = top(module)
    if ours in ("__init__", "__main__"):
        return
    for theirs in {top(name) for name in imports(module)} - {ours, "torch"}:
        below = ROW[theirs] < ROW[ours] or (ours, theirs) in WITHIN
        assert below, f"{module} imports {theirs}"
        assert (ours, theirs) not in NEVER, f"{module} imports {theirs}"


def test_the_import_graph_has_no_cycle():
    graph = {m: {n for n in imports(m) if n in MODULES and n != m} for m in MODULES}
    tuple(graphlib.TopologicalSorter(graph).static_order())


# --- torch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_torch_is_a_rule_per_folder(module):
    """Not even inside a function: what is above a run reads run folders."""
    assert "torch" not in imports(module) or top(module) in TORCH


@pytest.mark.slow
def test_importing_everything_torch_free_never_loads_torch():
    names = [f"nanoscale.{m}" for m in MODULES if top(m) not in TORCH | {"__main__"}]
    script = (
        "import importlib, sys\n"
        f"for name in {sorted(names)!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr


def test_the_contracts_load_nothing_heavy():
    """What says what a run is, and reads what it left, is the standard library alone."""
    modules = [m for m in MODULES if top(m) in GROUND | {"spec", "store"}]
    script = "import sys\n" + "".join(f"import nanoscale.{m}\n" for m in modules)
    script += "print({'torch', 'numpy', 'pandas', 'yaml', 'psutil', 'scipy'} & set(sys.modules))"
    assert run_python("-c", script).stdout == "set()\n"


# --- names ----------------------------------------------------------------------------


def test_no_drawer_for_odds_and_ends_and_no_module_named_after_a_dependency():
    taken = {
        "utils",
        "util",
        "helpers",
        "misc",
        "common",
        "torch",
        "numpy",
        "pandas",
        "yaml",
        "matplotlib",
        "rich",
        "psutil",
        "optuna",
        "ray",
        "submitit",
        "slurm",
        "wandb",
        "tensorboard",
        "trackio",
        "transformers",
        "tiktoken",
        "scipy",
    }
    assert not {part for module in MODULES for part in module.split(".")} & taken
    assert all(f.parent in (PACKAGE, PACKAGE / f.parent.name) for f in FILES)  # one folder deep


def test_config_files_are_no_package():
    assert not (ROOT / "config" / "__init__.py").exists()


def code_lines(file: Path) -> int:
    """Lines that are neither blank, comment nor docstring."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    docstring = tree.body[0] if ast.get_docstring(tree) else None
    inside = range(docstring.lineno, docstring.end_lineno + 1) if docstring else ()
    return sum(
        1
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#") and number not in inside
    )


DOORS = sorted([*ROOT.glob("*.py"), *ROOT.glob("data/*/prepare.py")])


@pytest.mark.parametrize("door", DOORS, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_door_is_a_docstring_and_a_dozen_lines(door):
    assert ast.get_docstring(ast.parse(door.read_text(encoding="utf-8")))
    assert code_lines(door) <= 12


# --- what no file may hold ---------------------------------------------------------------------


def repository_files() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


@pytest.mark.slow
def test_no_file_names_a_machine_or_a_registry():
    forbidden = re.compile(
        "|".join(
            (
                r"(?<![\w.])/(?:work|tm" r"p|home|root)/",
                r"py" r"pi\.org",
                r"python" r"hosted\.org",
                r"index" r"-url",
                r"conda\.anaconda",
            )
        )
    )
    found = []
    for file in repository_files():
        if file.is_file():
            text = file.read_bytes().decode("utf-8", errors="replace")
            found += [f"{file.relative_to(ROOT)}: {m[0]}" for m in forbidden.finditer(text)]
    assert not found
