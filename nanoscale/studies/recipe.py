"""Recipes: how one kind of question becomes runs, and what is said of them. Registered by name.

A recipe reads its own table of a study file into a `Question`: the rows of config keys to train
first, and the stages that come after them. Its runs are made by the runner; then `conclude` says
the answer, and `figures` draws it.
Each built-in stands in a file of its own (`grid_recipe`, `ladder_recipe`, `transfer_recipe`,
`search_recipe`, `forecast_recipe`, `isoflop_recipe`, `ablation_recipe`); a user's come from
`[study] recipes = FILE`, a Python file that registers them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nanoscale.errors import UserError, did_you_mean, guarded, one_of, registered_in
from nanoscale.experiments.backends import registered_backends
from nanoscale.experiments.records import describe
from nanoscale.spec.config import LENGTH_KEYS
from nanoscale.spec.values import Json, Overrides

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from nanoscale.experiments import Study
    from nanoscale.experiments.cells import Cell
    from nanoscale.experiments.search import SearchPlan
    from nanoscale.studies.coordinate_study import CoordinatePlan
    from nanoscale.studies.narrowing import Narrowing

BUILT_IN_RECIPES = ("grid", "ladder", "transfer", "search", "forecast", "isoflop", "ablation")
CHECK = "check"  # the stage of the parametrization's coordinate check
MIN_SIZES = 4  # a law of three parameters through fewer says nothing


@dataclass(frozen=True)
class FileTable:
    """A recipe's table of a study file, with what it needs to say where a mistake stands."""

    path: Path
    name: str
    values: Mapping[str, Any]  # as TOML has them
    base: Overrides  # the keys that all runs share

    def where(self, *keys: str) -> str:
        """`FILE, [ladder]`, or `FILE, [[ladder.sizes]]` for a list of tables in it."""
        if keys:
            return f"{self.path}, [[{'.'.join((self.name, *keys))}]]"
        return f"{self.path}, [{self.name}]"

    def part(self, key: str, keys: Sequence[str]) -> dict[str, Any] | None:
        """The table [name.key], of which `keys` are known; None where there is none."""
        values = self.values.get(key)
        if values is None:
            return None
        where = f"{self.path}, [{self.name}.{key}]"
        if not isinstance(values, dict):
            raise UserError(f"{where}: {key}={values!r}: write it as a table")
        for each in values:
            if each not in keys:
                hint = did_you_mean(each, keys) or f"; there are {one_of(keys)}"
                raise UserError(f"{where}: unknown key {each!r}{hint}")
        return dict(values)

    def take_seeds(self, size: dict[str, Any]) -> Any:
        """Take the seeds of a size out of its keys: its own, or the table's, or the base's one."""
        from nanoscale.spec.sources import FIELDS

        usual = self.values.get("seeds", [self.base.get("seed", FIELDS["seed"].default)])
        one = size.pop("seed", None)
        return size.pop("seeds", usual if one is None else [one])

    def sizes(self, no_length: str) -> list[tuple[Overrides, Any]]:
        """`[[name.sizes]]`, each with its seeds.

        Raises:
            UserError: one has a length, for which there is none, as `no_length` says; or is there
                twice.
        """
        where = self.where("sizes")
        found: list[tuple[Overrides, Any]] = []
        for size in self.tables("sizes"):
            lengths = [key for key in LENGTH_KEYS if key in size]
            if lengths:
                raise UserError(f"{where}: {lengths[0]}: {no_length}")
            seeds = self.take_seeds(size)
            if any(size == other for other, _ in found):
                raise UserError(
                    f"{where}: {describe(size)} is given twice; give it once, with seeds"
                )
            found.append((size, seeds))
        return found

    def no_ratio(self) -> UserError:
        """For a ladder whose base says no length that its sizes share."""
        return UserError(
            f"{self.path}, [base]: the runs of a ladder share one ratio of tokens to "
            "parameters; give it, as in tokens_per_param = 20"
        )

    def tables(self, key: str) -> list[dict[str, Any]]:
        """The list of tables `[[name.key]]`, with flat keys."""
        from nanoscale.spec.sources import flatten_keys

        tables = self.values.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            name = f"{self.name}.{key}"
            raise UserError(f"{self.path}: {name} is a list of tables; write each as [[{name}]]")
        return [flatten_keys(table) for table in tables]


@dataclass(frozen=True)
class Stage:
    """A part of a study, which comes when those before it have run.

    rows: the runs that it wants, by what those so far came to; asked again until none is new.
    foreseen: about those, by what has run so far; all of them are checked first, and a dry run
    shows them. name: of a study with several; it labels the runs. done: what else is to be done
    once they have run.
    """

    rows: Callable[[Study], Sequence[Overrides]]
    foreseen: Callable[[Study], Sequence[Overrides]] | None = None
    name: str | None = None
    done: Callable[[Study], None] | None = None

    def guarded(self, said: str) -> Stage:
        """The same, whose errors begin with `said`."""
        foreseen = self.foreseen and guarded(self.foreseen, said)
        done = self.done and guarded(self.done, said)
        return replace(self, rows=guarded(self.rows, said), foreseen=foreseen, done=done)


@dataclass(frozen=True)
class Question:
    """What a study file asks, checked before anything starts.

    rows: config keys, one mapping per run to begin with. where: how messages call them. extras:
    what `study.json` keeps of it for `conclude`, in JSON's types. stages: what comes after `rows`,
    in order. search: the plan of trials, for a question without rows. min_sizes: that a law
    through them needs. fitted: the rows that it is of, where those are none of `rows`.
    coordinates: the check, by the base, that must not fail before anything else is trained. check:
    refuses the runs that are foreseen. width: of its answer's interval, by them, in lines.
    """

    rows: Sequence[Overrides]
    where: str
    extras: Overrides = field(default_factory=dict)
    stages: Sequence[Stage] = ()
    search: SearchPlan | None = None
    min_sizes: int = MIN_SIZES
    fitted: Sequence[Overrides] = ()
    coordinates: Callable[[Overrides], CoordinatePlan] | None = None
    check: Callable[[Sequence[Cell]], None] | None = None
    width: Callable[[Study, Sequence[Cell]], Sequence[str]] | None = None

    @property
    def all_stages(self) -> list[Stage]:
        """Those of the rows too."""
        if not self.rows:
            return [*self.stages]
        return [Stage(lambda study: self.rows, lambda study: self.rows), *self.stages]


class Picture(NamedTuple):
    """A figure of the report: the name of its file, its caption, the figure."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Answer:
    """What a recipe says of its runs.

    lines: what a user reads at the end. result: what its figures are drawn from. labels: how each
    run's size is called, where runs have sizes. warnings, and tables with their captions: for the
    report. commands: what a verb makes again of the study -> that verb, with its options. verdict
    and numbers: as a `StudyAnswer` has them. files: records that the study keeps, by their names
    below its folder.
    """

    lines: Sequence[str]
    result: Any = None
    labels: Sequence[str] | None = None
    warnings: Sequence[str] = ()
    tables: Sequence[tuple[str, DataFrame]] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    verdict: str = ""
    numbers: Mapping[str, Json] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """One kind of question.

    tables: the keys that its table of the study file, of the recipe's own name, may have; None for
    any. rows: from that table to the question. conclude: from the study and its runs, a row each,
    to the answer. figures: the answer's pictures; none: those of a grid. narrow: what would narrow
    the answer's interval; None while there is none.
    """

    tables: Sequence[str] | None
    rows: Callable[[FileTable], Question]
    conclude: Callable[[Study, DataFrame], Answer]
    figures: Callable[[Study, DataFrame, Answer], Sequence[Picture]]
    narrow: Callable[[Study, DataFrame], Narrowing | None] | None = None
    refits_without_smallest: bool = False  # so its own interval may be wider than a design's


_registered: dict[str, Recipe] = {}


def register_recipe(name: str, recipe: Recipe) -> None:
    """Make `recipe` available to study files as `recipe = NAME`.

    Raises:
        UserError: the name is a built-in's or no name.

    >>> import nanoscale as ns
    >>> from nanoscale.studies.recipe import Answer, Question, Recipe
    >>> def two_seeds(table):
    ...     return Question([{"seed": 1}, {"seed": 2}], table.where())
    >>> pair = Recipe(
    ...     tables=(),
    ...     rows=two_seeds,
    ...     conclude=lambda study, frame: Answer([f"{len(frame)} runs"]),
    ...     figures=lambda study, frame, answer: [],
    ... )
    >>> ns.register_recipe("pair", pair)
    """
    if name in BUILT_IN_RECIPES:
        raise UserError(f"recipe {name!r} is built in; choose another name")
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"recipe {name!r}: expected a name, as in 'pair'")
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe {name!r}: expected a Recipe, got {recipe!r}")
    _registered[name] = recipe


def recipe_of(name: object, where: str) -> Recipe:
    """The recipe of that name; a `UserError` that begins with `where` for another."""
    if name in BUILT_IN_RECIPES:
        recipe: Recipe = import_module(f"nanoscale.studies.{name}_recipe").RECIPE
        return recipe
    if not isinstance(name, str) or name not in _registered:
        raise UserError(f"{where}: recipe={name!r}: choose {one_of(recipe_names())}")
    return _guarded(name, _registered[name])


def _guarded(name: str, recipe: Recipe) -> Recipe:
    """A user's recipe, whose errors at work are one line that names its file and line."""
    said = f"recipe {name!r}"

    def rows(table: FileTable) -> Question:
        question = guarded(recipe.rows, said)(table)
        if not isinstance(question, Question):
            raise UserError(f"{said}: rows returned {question!r}, expected a Question")
        return replace(question, stages=[stage.guarded(said) for stage in question.stages])

    def conclude(study: Study, frame: DataFrame) -> Answer:
        answer = guarded(recipe.conclude, said)(study, frame)
        if not isinstance(answer, Answer):
            raise UserError(f"{said}: conclude returned {answer!r}, expected an Answer")
        return answer

    return replace(recipe, rows=rows, conclude=conclude, figures=guarded(recipe.figures, said))


def recipe_names() -> list[str]:
    return [*BUILT_IN_RECIPES, *_registered]


def load_recipes(path: Path, where: str) -> None:
    """Run a user's Python file, which registers recipes, or a backend for `[run] backend`.

    Raises:
        UserError: it cannot be read, fails, or registers nothing; the line names the file.
    """
    said = f"{where}: recipes={str(path)!r}"
    before, backends = dict(_registered), registered_backends()
    _registered.clear()  # so that the same file, loaded again, is seen to register
    try:
        found = registered_in(path, _registered, said)
    finally:
        _registered.update(before)
    if not found and registered_backends() == backends:
        raise UserError(
            f"{said}: registers no recipe and no backend; call register_recipe(name, recipe) in it"
        )
    _registered.update(found)
