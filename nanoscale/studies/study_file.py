"""Study files: a question, the config its runs share, and a recipe that says how they differ.

A recipe turns its table of a TOML file into rows, one dict of config keys per run: `grid` every
combination of lists, `ladder` models of growing size at one ratio of tokens to parameters,
`transfer` learning rates over sizes, finer around each optimum once it is known where that is,
`search` trials of a space (see `experiments.search`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.experiments.cells import combinations, grid_lists
from nanoscale.experiments.search import SearchPlan
from nanoscale.experiments.space import read_space
from nanoscale.spec.config import LENGTH_KEYS
from nanoscale.spec.sources import FIELDS, flatten_keys

TABLES = {
    "study": ("name", "question", "recipe"),
    "base": None,
    "grid": None,
    "run": (
        "backend",
        "workers",
        "threads",
        "retries",
        "time_limit",
        "memory_limit",
        "budget",
        "backend_options",
    ),
    "ladder": ("seeds", "min_sizes", "sizes"),
    "transfer": ("size", "seeds", "sizes", "arms"),
    "search": ("trials", "sampler", "seed", "rungs", "promote", "space", "proxy", "seeds"),
}
RECIPES = ("grid", "ladder", "transfer", "search")
MIN_SIZES = 4  # a law of three parameters through fewer says nothing
MIN_TRANSFER_SIZES, MIN_LRS = 3, 5
FLAT = 0.05  # nats: LRs this close to the best one are part of its valley


@dataclass(frozen=True)
class Arm:
    """One of a transfer study's settings: its own keys, and the LRs to begin with."""

    name: str
    lr: str  # the key that is searched
    values: Mapping[str, Any]
    lrs: Sequence[float]
    sizes: Sequence[Mapping[str, Any]]
    seeds: Sequence[int]

    def first_rows(self) -> list[dict[str, Any]]:
        """Every size at every LR, with the first seed."""
        return [
            {**self.values, **size, self.lr: lr, "seed": self.seeds[0]}
            for size in self.sizes
            for lr in self.lrs
        ]

    def finer_rows(
        self, size: Mapping[str, Any], losses: Mapping[float, float]
    ) -> list[dict[str, Any]]:
        """All seeds at the five LRs, a factor of sqrt 2 apart, around the best of one size so far,
        and at every other that is hardly worse.

        `losses` are its seed means by LR, infinite where a run diverged. Where the best one is new
        after these, the next call goes on from there, also beyond the LRs begun with.
        """
        best = min(losses, key=lambda lr: losses[lr])
        near = [same_lr(best * 2 ** (k / 2), losses) for k in range(-2, 3)]
        near += [lr for lr in losses if losses[lr] <= losses[best] + FLAT and lr not in near]
        return [
            {**self.values, **size, self.lr: lr, "seed": seed} for lr in near for seed in self.seeds
        ]


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
    size: str = ""  # transfer: the key that grows
    arms: Sequence[Arm] = ()
    search: SearchPlan | None = None
    how: Mapping[str, Any] = field(default_factory=dict)  # arguments of ExperimentRunner


def read_study(path: Path) -> StudyFile:
    """Read and check a study file.

    Raises:
        UserError: naming the file, the table and the key, and the nearest one there is.
    """
    tables = _read_toml(path)
    for name, table in tables.items():
        if name not in TABLES:
            raise UserError(
                f"{path}: no table [{name}] in a study file"
                f"{did_you_mean(name, TABLES) or f'; there are {one_of(TABLES)}'}"
            )
        _check_keys(path, name, table, TABLES[name])
    study = tables.get("study", {})
    recipe = study.get("recipe")
    if recipe not in RECIPES:
        raise UserError(f"{path}, [study]: recipe={recipe!r}: choose {one_of(RECIPES)}")
    for other in set(RECIPES) - {recipe}:
        if other in tables:
            raise UserError(
                f"{path}: [{other}] belongs to recipe = {other!r}, but this one is {recipe!r}"
            )
    common = {
        "path": path,
        "name": study.get("name", path.stem),
        "recipe": recipe,
        "question": study.get("question", ""),
        "base": flatten_keys(tables.get("base", {})),
        "how": tables.get("run", {}),
    }
    rows = {
        "grid": _grid_rows,
        "ladder": _ladder_rows,
        "transfer": _transfer_rows,
        "search": _search_plan,
    }[recipe]
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
            raise UserError(
                f"{path}, [{name}]: unknown key {key!r}"
                f"{did_you_mean(key, known) or f'; there are {one_of(known)}'}"
            )


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
        raise UserError(
            f"{path}, [base]: the runs of a ladder share one ratio of tokens to "
            "parameters; give it, as in tokens_per_param = 20"
        )
    if not isinstance(least, int) or least < MIN_SIZES:
        raise UserError(
            f"{path}, [ladder]: min_sizes={least!r}: expected a whole number, at least {MIN_SIZES}"
        )
    sizes = _list_of_tables(path, "ladder", "sizes", ladder)
    if len(sizes) < least:
        raise UserError(f"{where}: {len(sizes)} sizes are too few for a law; give at least {least}")
    rows = []
    for size in sizes:
        own = [key for key in LENGTH_KEYS if key in size]
        if own:
            raise UserError(f"{where}: {own[0]}: all sizes share [base]'s tokens_per_param")
        seeds = size.pop("seeds", ladder.get("seeds", [FIELDS["seed"].default]))
        rows += combinations({k: [v] for k, v in size.items()} | grid_lists({}, seeds, where))
    return {"rows": rows, "where": where, "min_sizes": least}


def _search_plan(path: Path, table: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The plan in [search] and [search.space]."""
    where = f"{path}, [search.space]"
    options = {key: value for key, value in table.items() if key != "space"}
    options["proxy"] = flatten_keys(options.get("proxy", {}))
    for key in ("rungs", "seeds"):
        if not isinstance(options.setdefault(key, []), list):
            raise UserError(
                f"{path}, [search]: {key}={options[key]!r}: expected a list, as in [1, 2, 3]"
            )
    plan = SearchPlan(
        read_space(table.get("space"), where),
        options.pop("trials", 32),
        rungs=tuple(options.pop("rungs")) or (0,),
        **options,
    )
    return {"rows": [], "where": where, "search": plan}


def _transfer_rows(path: Path, table: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Every arm's LRs at every size in [[transfer.sizes]]."""
    where = f"{path}, [transfer]"
    key, seeds = table.get("size"), grid_lists({}, table.get("seeds", [1, 2, 3]), where)["seed"]
    sizes, arms = (_list_of_tables(path, "transfer", name, table) for name in ("sizes", "arms"))
    if not isinstance(key, str) or any(key not in size for size in sizes):
        raise UserError(
            f"{where}: size={key!r}: name the key that grows, one that every "
            "[[transfer.sizes]] has, as in size = 'n_embd'"
        )
    if len(sizes) < MIN_TRANSFER_SIZES:
        raise UserError(
            f"{path}, [[transfer.sizes]]: {len(sizes)} sizes show no drift; give at "
            f"least {MIN_TRANSFER_SIZES}"
        )
    made = [_arm(f"{path}, [[transfer.arms]]", arm, base, sizes, seeds) for arm in arms]
    if not made or len({arm.name for arm in made}) < len(made):
        raise UserError(
            f"{path}, [[transfer.arms]]: give at least one, each with a name of its own"
        )
    return {
        "rows": [row for arm in made for row in arm.first_rows()],
        "where": where,
        "size": key,
        "arms": made,
    }


def _arm(
    where: str,
    table: Mapping[str, Any],
    base: Mapping[str, Any],
    sizes: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
) -> Arm:
    values = dict(table)
    name, lrs = values.pop("name", None), values.pop("lrs", None)
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: every arm has a name, as in name = 'muP'")
    muon = {**base, **values}.get("optimizer") == "muon"
    lr = values.pop("lr", "muon_lr" if muon else "learning_rate")
    if (
        not isinstance(lrs, list)
        or len(lrs) < MIN_LRS
        or not all(isinstance(x, (int, float)) and x > 0 for x in lrs)
    ):
        raise UserError(
            f"{where}, {name}: lrs={lrs!r}: give at least {MIN_LRS} learning rates, as "
            "in lrs = [1e-3, 2e-3, 4e-3, 8e-3, 16e-3]"
        )
    return Arm(name, lr, values, sorted(map(float, lrs)), sizes, seeds)


def _list_of_tables(
    path: Path, recipe: str, name: str, table: Mapping[str, Any]
) -> list[dict[str, Any]]:
    found = table.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise UserError(
            f"{path}: {recipe}.{name} is a list of tables; write each as [[{recipe}.{name}]]"
        )
    return [flatten_keys(one) for one in found]


def same_lr(lr: float, known: Mapping[float, Any]) -> float:
    """The known LR that is `lr` but for rounding, else `lr` to five digits, to name its run."""
    close = [one for one in known if abs(one / lr - 1) < 0.01]
    return close[0] if close else float(f"{lr:.5g}")
