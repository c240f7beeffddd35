"""Study files: a question, the config its runs share, and a recipe that says how they differ.

A recipe turns its table of a TOML file into rows, one dict of config keys per run: `grid` every
combination of lists, `ladder` models of growing size at one ratio of tokens to parameters.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoscale.config import LENGTH_KEYS
from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.experiments.cells import combinations, grid_lists
from nanoscale.sources import FIELDS, flatten_keys

TABLES = {"study": ("name", "question", "recipe"), "base": None, "grid": None,
          "ladder": ("seeds", "min_sizes", "sizes")}
RECIPES = ("grid", "ladder")
MIN_SIZES = 4  # a law of three parameters through fewer says nothing


@dataclass(frozen=True)
class StudyFile:
    """A study file, checked: the shared config and one row of config keys per run."""

    path: Path
    name: str
    question: str
    recipe: str
    base: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    where: str  # how messages call the rows
    min_sizes: int = MIN_SIZES


def read_study(path: Path) -> StudyFile:
    """Read and check a study file.

    Raises:
        UserError: naming the file, the table and the key, and the nearest one there is.
    """
    tables = _read_toml(path)
    for name, table in tables.items():
        if name not in TABLES:
            raise UserError(f"{path}: no table [{name}] in a study file"
                            f"{did_you_mean(name, TABLES) or f'; there are {one_of(TABLES)}'}")
        _check_keys(path, name, table, TABLES[name])
    study = tables.get("study", {})
    recipe = study.get("recipe")
    if recipe not in RECIPES:
        raise UserError(f"{path}, [study]: recipe={recipe!r}: choose {one_of(RECIPES)}")
    for other in set(RECIPES) - {recipe}:
        if other in tables:
            raise UserError(f"{path}: [{other}] belongs to recipe = {other!r}, but this one is "
                            f"{recipe!r}")
    common = {"path": path, "name": study.get("name", path.stem), "recipe": recipe,
              "question": study.get("question", ""), "base": flatten_keys(tables.get("base", {}))}
    rows = _grid_rows if recipe == "grid" else _ladder_rows
    return StudyFile(**common, **rows(path, tables.get(recipe, {}), common["base"]))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = [str(p) for p in sorted(path.parent.glob("*.toml"))]
        hint = did_you_mean(str(path), there) or "; studies/quick.toml is one"
        raise UserError(f"{path}: no such study file{hint}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid TOML: {e}") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e


def _check_keys(path: Path, name: str, table: Any, known: Sequence[str] | None) -> None:
    if not isinstance(table, Mapping):
        raise UserError(f"{path}: {name} is a table; write [{name}] on a line of its own")
    for key in table if known is not None else ():
        if key not in known:
            raise UserError(f"{path}, [{name}]: unknown key {key!r}"
                            f"{did_you_mean(key, known) or f'; there are {one_of(known)}'}")


def _grid_rows(path: Path, grid: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Every combination of the lists in [grid]."""
    where = f"{path}, [grid]"
    if not grid:
        raise UserError(f"{where}: give at least one key a list, as in n_layer = [2, 4, 8]")
    return {"rows": combinations(grid_lists(grid, None, where)), "where": where}


def _ladder_rows(path: Path, ladder: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Every size in [[ladder.sizes]] with each of its seeds."""
    where, least = f"{path}, [[ladder.sizes]]", ladder.get("min_sizes", MIN_SIZES)
    if base.get("tokens_per_param") is None:
        raise UserError(f"{path}, [base]: the runs of a ladder share one ratio of tokens to "
                        "parameters; give it, as in tokens_per_param = 20")
    if not isinstance(least, int) or least < MIN_SIZES:
        raise UserError(f"{path}, [ladder]: min_sizes={least!r}: expected a whole number, at least "
                        f"{MIN_SIZES}")
    sizes = ladder.get("sizes", [])
    if not isinstance(sizes, list) or not all(isinstance(size, Mapping) for size in sizes):
        raise UserError(f"{path}: ladder.sizes is a list of tables; write each as [[ladder.sizes]]")
    if len(sizes) < least:
        raise UserError(f"{where}: {len(sizes)} sizes are too few for a law; give at least {least}")
    rows = []
    for size in map(flatten_keys, sizes):
        own = [key for key in LENGTH_KEYS if key in size]
        if own:
            raise UserError(f"{where}: {own[0]}: all sizes share [base]'s tokens_per_param")
        seeds = size.pop("seeds", ladder.get("seeds", [FIELDS["seed"].default]))
        rows += combinations({k: [v] for k, v in size.items()} | grid_lists({}, seeds, where))
    return {"rows": rows, "where": where, "min_sizes": least}
