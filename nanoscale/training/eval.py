"""What a run, or weights from elsewhere, are worth: losses per validation set, and lm-eval's tasks.

The losses are the final evaluation's: fixed windows, float32. The tasks are lm-eval's own, on the
run as transformers reads it (see `export`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.data.dataset import VAL, Dataset, dataset_folder, further_files, open_dataset
from nanoscale.errors import UserError
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.values import Json
from nanoscale.store.files import read_json, write_json
from nanoscale.store.folder import CONFIG, RunFolder, run_spec
from nanoscale.training.export import export
from nanoscale.training.run import check_machine
from nanoscale.training.sample import beginning, data_of
from nanoscale.training.sample_options import SampleOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoscale.model.pretrained import Pretrained
    from nanoscale.training.evaluation import SetLoss

TASK_FILES = (".yaml", ".yml")


@dataclass(frozen=True)
class EvalOptions:
    """What to evaluate, and on what: `data` are validation sets as `val_sets` names them."""

    weights: str  # a run folder, or what init_from takes
    data: tuple[str, ...] = ()  # none: those of the run
    data_root: str | None = None  # where data sets lie now
    device: str = "auto"
    tokens: int = 1_000_000  # most of each set
    tasks: tuple[str, ...] = ()  # lm-eval's names, or task files
    limit: int | None = None  # most examples of a task


@dataclass(frozen=True)
class Judged:
    """The losses by validation set, and the metrics by task."""

    weights: str
    data: str  # whose sets
    step: int | None = None  # of a run's weights
    file: str | None = None  # that holds them
    sets: Mapping[str, SetLoss] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> Mapping[str, Json]:
        return asdict(self)

    def lines(self) -> list[str]:
        """As a terminal shows it."""
        lines = []
        if self.file is not None:
            lines.append(f"{self.weights}: {self.file} at step {self.step}")
        for name, found in self.sets.items():
            line = f"{name}: loss {found.loss:.4f}"
            if found.bits_per_byte is not None:
                line += f", {found.bits_per_byte:.4f} bits per byte"
            lines.append(f"{line} over {found.tokens:,} tokens")
        for name, metrics in self.tasks.items():
            told = [f"{metric} {value:.4f}" for metric, value in metrics.items()]
            lines.append(f"{name}: {', '.join(told)}")
        return lines


def evaluate_weights(options: EvalOptions) -> Judged:
    """Evaluate the weights on every set, and on the tasks if there are any.

    Raises:
        UserError: no weights there, no data that their tokens mean, or a task that is not known.
    """
    if options.tasks and find_spec("lm_eval") is None:
        raise UserError("--tasks needs lm-eval: run `pip install 'nanoscale[eval]'`")
    folder = RunFolder(options.weights)
    is_run = folder.path.is_dir() and folder.record(CONFIG) is not None
    spec = folder.spec() if is_run else None
    warnings: list[str] = []
    sets: Mapping[str, SetLoss] = {}
    dataset, step, file = "", None, None
    if options.data or not options.tasks or spec is not None:
        from nanoscale.model.init_from import pretrained

        found = pretrained(options.weights)
        config = _config(options, spec, found, warnings)
        dataset = config.dataset
        sets = _losses(config, found, options.data, warnings)
        if spec is not None:
            step, file = found.step, found.file
    tasks = _tasks(options, spec) if options.tasks else {}
    return Judged(options.weights, dataset, step, file, sets, tasks, tuple(warnings))


# -- losses ---------------------------------------------------------------------------------------
def _config(
    options: EvalOptions, spec: RunSpec | None, found: Pretrained, warnings: list[str]
) -> ExperimentConfig:
    """A config of the weights on the data that was asked for, else on their own."""
    dataset, root = None, options.data_root or "data"
    val_sets: Sequence[str] = options.data
    if found.spec is not None:
        root = options.data_root or found.spec.config.data_root
    if spec is not None:
        try:
            dataset = str(data_of(spec, options.data_root).folder)
        except UserError as e:
            if not options.data or not _is_dataset(options.data[0], root):
                raise
            warnings.append(f"not compared with the tokens it was trained on: {e}")
        else:
            val_sets = _sets_now(options, spec, dataset, root, warnings)
    elif found.dataset and (not options.data or _is_dataset(found.dataset, root)):
        dataset = found.dataset
    if dataset is None:
        if not val_sets:
            raise UserError(f"{options.weights}: nothing says on what data; add --data=NAME")
        dataset, *others = val_sets
        val_sets = (VAL, *others) if others else ()
    return ExperimentConfig(
        dataset=dataset,
        data_root=root,
        val_sets=tuple(val_sets),
        init_from=options.weights,
        final_eval_tokens=options.tokens,
        device=options.device,
        compile=False,
    )


def _sets_now(
    options: EvalOptions, spec: RunSpec, folder: str, root: str, warnings: list[str]
) -> list[str]:
    """The sets asked for, or those of the run's own that are there still.

    One warning says what has changed of them since it was trained.
    """
    there, changed = [], []
    for name in options.data or spec.val_sets:
        try:
            parts = open_dataset(folder, root, (name,)).parts
        except UserError as e:
            if options.data:
                raise
            changed.append(f"{name} is not evaluated ({e})")
            continue
        there.append(name)
        if sets := spec.changed_sets(parts):
            changed.append(f"{sets} has other tokens")
    if not there:
        raise UserError(f"{options.weights}: {'; '.join(changed)}; name others, as in --data=val")
    if not options.data and "val_sets" not in spec.typed:
        added = [name for name in further_files(Path(folder)) if name not in spec.val_sets]
        changed += [f"{name} was added (--data={name} evaluates it)" for name in added]
    if changed:
        warnings.append(f"validation sets since training: {'; '.join(changed)}")
    return there


def _is_dataset(name: str, root: str) -> bool:
    try:
        dataset_folder(name, root)
    except UserError:
        return False
    return True


def _losses(
    config: ExperimentConfig, found: Pretrained, asked: tuple[str, ...], warnings: list[str]
) -> dict[str, SetLoss]:
    check_machine(config)
    own = Path(config.dataset).name if asked and VAL not in asked else VAL
    data = open_dataset(config.dataset, config.data_root, config.val_sets)

    from nanoscale.model.distributed import Ranks
    from nanoscale.model.init_from import cropped, described
    from nanoscale.training.evaluation import final_losses, set_loss
    from nanoscale.training.lines import few_tokens
    from nanoscale.training.state import build

    weights = described(found, config.init_from, config.data_root)
    warnings += weights.warnings
    spec = run_spec(config, data, {}, weights)
    data.require_block(spec.config.block_size)
    first = cropped(found.tensors, spec.config.block_size)
    run = build(spec, data, Ranks(), values=first)
    if question := few_tokens(run):
        warnings.append(question)
    losses = {}
    for name in data.val_sets:
        losses[own if name == VAL else name] = set_loss(run, name, final_losses(run, name))
    return losses


# -- tasks ----------------------------------------------------------------------------------------
def _tasks(options: EvalOptions, spec: RunSpec | None) -> dict[str, dict[str, float]]:
    """lm-eval's metrics of each task, without its standard errors."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    names, folders = [], []
    for task in options.tasks:
        file = Path(task)
        names.append(_task_in(file) if file.suffix in TASK_FILES else task)
        if file.suffix in TASK_FILES:
            folders.append(str(file.parent.absolute()))
    manager = TaskManager(include_path=folders or None)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UserError(
            f"--tasks: lm-eval knows no {unknown[0]!r}; name one that `lm-eval ls tasks` lists, or "
            "a task's .yaml file"
        )
    with _as_transformers(options, spec) as folder:
        try:
            found: Any = lm_eval.simple_evaluate(
                model="hf",
                model_args={"pretrained": str(folder), "dtype": "float32"},
                tasks=names,
                task_manager=manager,
                limit=options.limit,
                device="cpu" if options.device == "auto" else options.device,
                bootstrap_iters=0,
            )
        except Exception as e:  # its tasks are others' code and data
            why = (str(e).splitlines() or [""])[0]
            tasks = ",".join(options.tasks)
            raise UserError(f"--tasks={tasks}: lm-eval fails ({type(e).__name__}: {why})") from e
    return {name: _numbers(metrics) for name, metrics in found["results"].items()}


def _task_in(file: Path) -> str:
    """The name that a task file gives its task."""
    yaml: Any = import_module("yaml")  # lm-eval's
    try:
        tree = yaml.compose(file.read_text(encoding="utf-8"))  # runs none of its `!function`
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        why = getattr(e, "strerror", None) or getattr(e, "problem", None) or "not UTF-8"
        raise UserError(f"--tasks={file}: cannot be read as a task of lm-eval ({why})") from e
    for key, value in tree.value if isinstance(tree, yaml.MappingNode) else ():
        if key.value in ("task", "group") and isinstance(value, yaml.ScalarNode):
            return str(value.value)
    raise UserError(f"--tasks={file}: names no task (a line `task: NAME`)")


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    named = {name.removesuffix(",none"): value for name, value in metrics.items()}
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, (int, float)) and "stderr" not in name and name != "sample_len"
    }


@contextmanager
def _as_transformers(options: EvalOptions, spec: RunSpec | None) -> Iterator[Path]:
    """The weights as a folder that transformers opens: theirs, or an export for now."""
    folder = Path(options.weights)
    if spec is None and folder.is_dir() and list(folder.glob("*.safetensors")):
        yield folder
        return
    if spec is None:
        raise UserError(
            f"{options.weights}: lm-eval's tasks need a run or a folder of transformers; make a "
            f"run of it with `nanoscale train --init_from={options.weights} --max_iters=0`"
        )
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary, "model")
        done = export(options.weights, out, options.data_root)
        if done.tokenizer is None:
            why = "; ".join(done.warnings)
            raise UserError(f"{options.weights}: no task can be asked without its tokenizer: {why}")
        _end_somewhere(out, data_of(spec, options.data_root))
        yield out


def _end_somewhere(folder: Path, dataset: Dataset) -> None:
    """Have text begin and end at an end of line where no special token ends it: lm-eval asks."""
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    if "eos_token" not in config:
        config["eos_token"] = dataset.decode(beginning(dataset, SampleOptions.start))
        write_json(path, config)
