"""Study files: a question, the config its runs share, and a recipe that says how they differ."""

from __future__ import annotations

import os.path
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.spec.shipped import named, names
from nanoscale.spec.sources import Source, flatten_keys
from nanoscale.spec.values import Json, Overrides
from nanoscale.studies.recipe import (
    CHECK,
    FileTable,
    Question,
    Recipe,
    load_recipes,
    recipe_names,
    recipe_of,
)

EXAMPLE = "quick"
STUDIES = "studies"  # the folder of those that have a name
STUDY_KEYS = ("name", "question", "recipe", "recipes")
RUN_KEYS = (
    "backend",
    "workers",
    "threads",
    "retries",
    "time_limit",
    "memory_limit",
    "budget",
    "backend_options",
)


@dataclass(frozen=True)
class StudyFile:
    """A study file, checked: its recipe, the shared config and what it asks."""

    path: Path
    name: str
    text: str
    recipe_name: str
    recipe: Recipe
    recipes: Path | None  # the user's file that registers the recipe
    base: Overrides
    question: Question
    words: str  # the question as the user puts it
    how: Overrides  # arguments of ExperimentRunner

    @property
    def base_source(self) -> Source:
        """The shared config, under its name."""
        return Source(f"{self.path}, [base]", self.base)

    @property
    def stages(self) -> list[str]:
        """The names of its stages, where it has several."""
        named = [stage.name for stage in self.question.stages if stage.name is not None]
        return [CHECK, *named] if self.question.coordinates is not None else named


def read_study(path: Path) -> StudyFile:
    """Read and check a study file, by its path or by the name of one that comes with the package.

    Raises:
        UserError: naming the file, the table and the key, and the nearest one there is.
    """
    path = named(path, STUDIES)
    return study_of(_read_text(path), path)


def study_of(text: str, path: Path) -> StudyFile:
    """The same of the text of such a file."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    study = tables.get("study", {})
    recipes = _load_users_recipes(study, path)
    _check_tables(tables, path)

    where = f"{path}, [study]"
    recipe_name = study.get("recipe")
    recipe = recipe_of(recipe_name, where)
    for other in recipe_names():
        if other != recipe_name and other in tables:
            raise UserError(
                f"{path}: [{other}] belongs to recipe = {other!r}, but this one is {recipe_name!r}"
            )

    base = flatten_keys(tables.get("base", {}))
    table = FileTable(path, recipe_name, tables.get(recipe_name, {}), base)
    return StudyFile(
        path=path,
        name=study.get("name", path.stem),
        text=text,
        recipe_name=recipe_name,
        recipe=recipe,
        recipes=recipes,
        base=base,
        question=recipe.rows(table),
        words=study.get("question", ""),
        how=tables.get("run", {}),
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        neighbours = [str(file) for file in sorted(path.parent.glob("*.toml"))]
        others = {*neighbours, *names(STUDIES)} - {str(path)}  # a link whose file is gone
        hint = did_you_mean(str(path), sorted(others))
        hint = hint or f"; {EXAMPLE!r} is one"
        raise UserError(f"{path}: no such study file{hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({said})") from error


def _load_users_recipes(study: Json, path: Path) -> Path | None:
    """Run the file that `[study] recipes` names, relative to the study file or the folder here."""
    if not isinstance(study, Mapping) or "recipes" not in study:
        return None
    name = study["recipes"]
    if not isinstance(name, str):
        raise UserError(f"{path}, [study]: recipes={name!r}: expected a file, as in 'mine.py'")
    beside = path.parent / os.path.expanduser(name)
    recipes = beside if beside.is_file() else Path(name)
    load_recipes(recipes, f"{path}, [study]")
    return recipes


def _check_tables(tables: Mapping[str, Json], path: Path) -> None:
    """Refuse tables that no study file has, and keys that a table does not know."""
    known = ("study", "base", "run", *recipe_names())
    for name, table in tables.items():
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are {one_of(known)}"
            raise UserError(f"{path}: no table [{name}] in a study file{hint}")
        if not isinstance(table, Mapping):
            raise UserError(f"{path}: {name} is a table; write [{name}] on a line of its own")
        keys = _keys_of(name, path)
        for key in table:
            if keys is not None and key not in keys:
                hint = did_you_mean(key, keys) or f"; there are {one_of(keys)}"
                raise UserError(f"{path}, [{name}]: unknown key {key!r}{hint}")


def _keys_of(table: str, path: Path) -> Sequence[str] | None:
    """The keys that a table may have; None for any."""
    shared = {"study": STUDY_KEYS, "base": None, "run": RUN_KEYS}
    return shared[table] if table in shared else recipe_of(table, f"{path}").tables
