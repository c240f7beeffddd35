"""Prose: how densely the package may be written, and that one word means one thing.

The budgets are of content, not of lines: syntax nodes a line says how much a line holds, nodes a
function how much a reader keeps in mind. nanoGPT, nanochat, equinox and optuna lie at 6 to 12.
"""

from __future__ import annotations

import ast
import collections
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import PACKAGE, ROOT

NODES_PER_LINE = (11, 16)  # median and 90th percentile of functions of five lines
NODES_PER_FUNCTION = (220, 400)  # 90th percentile and most
PER_1000_LINES = {"comprehensions": 25, "conditional expressions": 18}
LOOSE_SIGNATURES = 0.03
MOST_NODES = 362_000
SHORT = 5  # lines of code below which a density says nothing

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FILES = sorted(PACKAGE.rglob("*.py"))


@dataclass(frozen=True)
class Function:
    """One function or method: where it stands, its syntax nodes, its lines of code."""

    name: str
    nodes: int
    lines: int
    signature: str

    @property
    def density(self) -> float:
        return self.nodes / self.lines


def lines_of_code(node: ast.AST, lines: list[str]) -> int:
    """Without blank lines, comments and the docstring."""
    body = lines[node.lineno - 1 : node.end_lineno]
    code = [line for line in body if line.strip() and not line.strip().startswith("#")]
    docstring = ast.get_docstring(node, clean=False)
    if docstring is None:
        return len(code)
    told = [line for line in docstring.splitlines() if line.strip()]
    return len(code) - max(len(told), 1)


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """Parsed at the first test that asks: not where tests are only collected."""
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


@functools.cache
def functions() -> list[Function]:
    every = []
    for file, tree in trees().items():
        lines = file.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, FUNCTIONS):
                continue
            name = f"{file.relative_to(PACKAGE)}:{node.lineno} {node.name}"
            returns = ast.unparse(node.returns) if node.returns else ""
            signature = f"{ast.unparse(node.args)} -> {returns}"
            nodes = sum(1 for _ in ast.walk(node))
            every.append(Function(name, nodes, lines_of_code(node, lines), signature))
    return every


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def worst(key: str, count: int = 8) -> str:
    ordered = sorted(functions(), key=lambda f: getattr(f, key), reverse=True)
    return "\n".join(f"{getattr(f, key):8.1f}  {f.name}" for f in ordered[:count])


# --- budgets of content ------------------------------------------------------------------------


@pytest.mark.parametrize(("q", "most"), [(0.5, NODES_PER_LINE[0]), (0.9, NODES_PER_LINE[1])])
def test_a_line_says_one_thing(q, most):
    densities = [f.density for f in functions() if f.lines >= SHORT]
    assert quantile(densities, q) <= most, worst("density")


@pytest.mark.parametrize(
    ("q", "most"), [(0.9, NODES_PER_FUNCTION[0]), (1.0, NODES_PER_FUNCTION[1])]
)
def test_a_function_can_be_kept_in_mind(q, most):
    assert quantile([f.nodes for f in functions()], q) <= most, worst("nodes")


@pytest.mark.slow
@pytest.mark.parametrize("kind", PER_1000_LINES)
def test_little_is_folded_up(kind):
    folds = COMPREHENSIONS if kind == "comprehensions" else (ast.IfExp,)
    count = sum(isinstance(node, folds) for tree in trees().values() for node in ast.walk(tree))
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in FILES)
    assert 1000 * count / lines <= PER_1000_LINES[kind]


def test_the_package_stays_as_small_as_it_is():
    nodes = sum(1 for tree in trees().values() for _ in ast.walk(tree))
    assert nodes <= MOST_NODES


# --- records, not dicts ------------------------------------------------------------------------

ANY = re.compile(r"(?:dict|Mapping|MutableMapping)\[str, (?:Any|object)\]")


def aliases() -> set[str]:
    """Names at module level that stand for a mapping of anything."""
    names = set()
    for tree in trees().values():
        for node in tree.body:
            value = getattr(node, "value", None)
            if (
                isinstance(node, ast.Assign | ast.AnnAssign)
                and value
                and ANY.search(ast.unparse(value))
            ):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                names.add(ast.unparse(target))
    return names


def test_records_are_values_and_not_dicts_of_anything():
    words = "|".join([ANY.pattern, *(rf"\b{name}\b" for name in sorted(aliases()))])
    loose = [f.name for f in functions() if re.search(words, f.signature)]
    assert len(loose) <= LOOSE_SIGNATURES * len(functions()), "\n".join(loose)


# --- one word, one thing -----------------------------------------------------------------------


def names_of(node: ast.stmt) -> list[str]:
    """What a statement at module level binds."""
    if isinstance(node, ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        return [ast.unparse(node.target)]
    if not isinstance(node, ast.Assign):
        return []
    targets = []
    for target in node.targets:
        targets += target.elts if isinstance(target, ast.Tuple) else [target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def modules_that_bind(kind: str) -> dict[str, list[str]]:
    """Public name -> the modules in which it is bound at the top: classes, or constants."""
    places = collections.defaultdict(list)
    for file, tree in trees().items():
        for node in tree.body:
            for name in names_of(node):
                constant = name.isupper()
                if (
                    not name.startswith("_")
                    and name[0].isupper()
                    and constant == (kind == "constant")
                ):
                    places[name].append(str(file.relative_to(PACKAGE)))
    return places


# Every recipe's file binds its RECIPE.
TWICE = {"RECIPE"}


@pytest.mark.parametrize("kind", ["class", "constant"])
def test_a_public_name_means_one_thing(kind):
    twice = {name: files for name, files in modules_that_bind(kind).items() if len(files) > 1}
    assert not twice.keys() - TWICE


def test_every_noun_of_the_glossary_is_a_word_of_the_code():
    """CONTRIBUTING's glossary: `word` (in backticks) and what it means, one a line."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    glossary = text.split("## Glossary", 1)[1].split("\n## ", 1)[0]
    words = re.findall(r"^- `([^`]+)`", glossary, flags=re.MULTILINE)
    assert len(words) > 30
    assert len(words) == len(set(words))
    code = "\n".join(file.read_text(encoding="utf-8") for file in FILES)
    assert not [word for word in words if not re.search(rf"\b{re.escape(word)}\b", code)]


# --- folds that are not prose ------------------------------------------------------------------


def is_boolean(node: ast.expr) -> bool:
    if isinstance(node, ast.BoolOp):
        return any(is_boolean(value) for value in node.values)
    call = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "bool"
    return call or isinstance(node, ast.Compare)


def packed(node: ast.AST) -> str:
    """What is wrong with this node, or nothing."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        sides = (node.left, node.right)
        listed = any(isinstance(side, ast.List | ast.JoinedStr) for side in sides)
        if listed and any(is_boolean(side) for side in sides):
            return "a list or text times a bool: write an if"
    if isinstance(node, ast.comprehension):
        single = isinstance(node.iter, ast.List | ast.Tuple) and len(node.iter.elts) == 1
        if single and not isinstance(node.iter.elts[0], ast.Starred):
            return "a let by a list of one element: assign a name"
    inner = ast.walk(node.value) if isinstance(node, ast.FormattedValue) else ()
    if any(isinstance(part, ast.JoinedStr) for part in inner):
        return "an f-string inside an f-string: name the inner one"
    if (
        isinstance(node, ast.Attribute)
        and node.attr.startswith("__")
        and isinstance(node.value, ast.Constant)
    ):
        return "a bound dunder of a literal as a function: write it out"
    return ""


@pytest.mark.slow
def test_no_fold_that_must_be_decoded():
    wrong = []
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if reason := packed(node):
                line = getattr(node, "lineno", getattr(getattr(node, "iter", None), "lineno", 0))
                wrong.append(f"{file.relative_to(PACKAGE)}:{line} {reason}")
    assert not wrong, "\n".join(wrong)
