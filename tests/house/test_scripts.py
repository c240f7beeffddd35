"""What no other test would notice: scripts that name what is gone."""

from __future__ import annotations

import ast
import importlib.util
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
