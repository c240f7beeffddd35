"""What no other test would notice: scripts that name what is gone, files that no wheel holds."""

from __future__ import annotations

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest
from tiny import ROOT

SCRIPTS = [*ROOT.glob("docs/**/*.py"), *ROOT.glob("data/*/*.py")]


def is_there(module: str, name: str) -> bool:
    """Whether `from module import name` works."""
    if hasattr(importlib.import_module(module), name):
        return True
    return importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_imports_of_ours_is_there(script: Path):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nanoscale"):
            missing = [a.name for a in node.names if not is_there(node.module, a.name)]
            assert not missing, f"line {node.lineno}: {node.module} has no {missing}"


def test_what_lies_beside_the_code_is_installed_with_it():
    """The kernels without their headers do not build, and only a wheel's user would see it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed = set(ROOT.glob("nanoscale/**/*.py"))
    for package, patterns in project["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        installed.update(path for pattern in patterns for path in folder.glob(pattern))
    files = {path for path in ROOT.glob("nanoscale/**/*.*") if path.suffix != ".pyc"}
    assert not files - installed
