"""The pages on migration: every name that they say is here is here, with the default they say."""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from nanogpt import nanogpt_state, save_nanogpt
from tiny import ROOT, RUN, TEXT, run_nanoscale, run_python

from nanoscale.spec.architecture import ffn_width
from nanoscale.spec.sources import FIELDS, build, parse_arguments

FORK = (ROOT / "docs" / "migration" / "fork.md").read_text(encoding="utf-8")
NANOGPT = (ROOT / "docs" / "migration" / "nanogpt.md").read_text(encoding="utf-8")

# The keys of nanoGPT's train.py with their defaults, from its source.
OF_NANOGPT = {
    "out_dir": "out",
    "eval_interval": 2000,
    "log_interval": 1,
    "eval_iters": 200,
    "eval_only": False,
    "always_save_checkpoint": True,
    "init_from": "scratch",
    "wandb_log": False,
    "wandb_project": "owt",
    "wandb_run_name": "gpt2",
    "dataset": "openwebtext",
    "gradient_accumulation_steps": 40,
    "batch_size": 12,
    "block_size": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "dropout": 0.0,
    "bias": False,
    "learning_rate": 6e-4,
    "max_iters": 600000,
    "weight_decay": 1e-1,
    "beta1": 0.9,
    "beta2": 0.95,
    "grad_clip": 1.0,
    "decay_lr": True,
    "warmup_iters": 2000,
    "lr_decay_iters": 600000,
    "min_lr": 6e-5,
    "backend": "nccl",
    "device": "cuda",
    "dtype": "bfloat16",
    "compile": True,
}
# Those that the fork adds.
OF_FORK = OF_NANOGPT | {
    "tensorboard_log": True,
    "tensorboard_run_name": "gpt2_muon",
    "use_rmsnorm": True,
    "use_rope": True,
    "use_swiglu": True,
    "multiple_of": 256,
    "optimizer": "adamw",
    "parametrization.mode": "SP",
}


# -- reading a page -------------------------------------------------------------------------------
def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}\n", 1)[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of a section's tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cut = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[cut + 1 :]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def listed(text: str, before: str) -> set[str]:
    """The words of the first span of code after some words."""
    return set(code(text.split(before, 1)[1])[0].split())


def other_defaults(theirs: dict[str, object]) -> set[str]:
    """The keys that have another default here."""
    return {key for key, value in theirs.items() if key in FIELDS and FIELDS[key].default != value}


# -- names ----------------------------------------------------------------------------------------
def named_here() -> Iterator[str]:
    for _, here in rows(section(FORK, "Names")):
        yield from code(here)


def resolved(dotted: str) -> object:
    """What a dotted name is; the longest part of it that is a module is imported."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{dotted} is nowhere")


@pytest.mark.slow  # torch
def test_every_name_of_the_table_is_here():
    kinds = {"import": 0, "dotted": 0, "flag": 0, "argument": 0}
    last: object = None
    for name in named_here():
        if name.startswith("from "):
            kinds["import"] += 1
        elif name.startswith("nanoscale."):
            last = resolved(name)
            assert callable(last), name
            kinds["dotted"] += 1
        elif name.startswith("--"):
            assert name[2:] in FIELDS, name
            kinds["flag"] += 1
        elif name.endswith("="):
            assert name[:-1] in inspect.signature(last).parameters, name
            kinds["argument"] += 1
        else:
            assert name in ("sample", "mfu"), name  # a verb, a key of metrics.json
    assert all(count >= 3 for count in kinds.values()), kinds


@pytest.mark.slow
def test_the_imports_of_the_table_work_at_a_clones_root():
    lines = [name for name in named_here() if name.startswith("from ")]
    done = run_python("-c", "\n".join([*lines, "print('all')"]), cwd=ROOT)
    assert done.stdout == "all\n", done.stderr


# -- keys and defaults ----------------------------------------------------------------------------
def test_the_keys_of_the_fork_are_those_of_the_page():
    flags = section(FORK, "Flags")
    here, gone = listed(flags, "under their names:"), listed(flags, "One is not:")
    assert here | gone == set(OF_FORK)
    assert here <= set(FIELDS)
    assert not gone & set(FIELDS)


def test_the_defaults_that_differ_from_the_forks_are_those_of_the_page():
    table = {}
    for key, there, here, why in rows(section(FORK, "Flags")):
        table[code(key)[0]] = (*code(there), *code(here))
        assert why
    assert set(table) == other_defaults(OF_FORK)
    for key, said in table.items():
        assert said == (str(OF_FORK[key]), str(FIELDS[key].default)), key


def test_the_widths_beside_the_default_of_multiple_of_are_the_models():
    wide = build(parse_arguments(["--use_swiglu=True", "--multiple_of=256"]))
    exact = build(parse_arguments(["--use_swiglu=True", "--multiple_of=1"]))
    sizes = [ffn_width(exact, 64), ffn_width(wide, 64), ffn_width(wide, 768)]
    said = (
        f"8/3 of width 64 is {sizes[0]}, rounded up to {sizes[1]} half as much again; of width 768 "
    )
    assert f"{said}it is {sizes[2]:,} as it is" in FORK
    assert sizes[2] == ffn_width(exact, 768)


def test_mup_is_understood_as_the_fork_writes_it():
    config = build(parse_arguments(["--parametrization.mode=MuP"]))
    assert config.parametrization.mode == "muP"


def test_the_keys_of_nanogpt_are_those_of_the_page():
    text = section(NANOGPT, "There and here")
    assert listed(text, "keys are here:") == set(OF_NANOGPT)
    assert set(OF_NANOGPT) <= set(FIELDS)
    said = text.split("Three have another default:", 1)[1].split("as told", 1)[0]
    assert set(code(said)) == other_defaults(OF_NANOGPT)


def test_the_keys_among_nanogpts_differences_are_keys():
    others = {"c_attn", "train_loss"}  # a tensor, a number
    cells = [cell for row in rows(section(NANOGPT, "What differs, and why")) for cell in row]
    spans = [span.split("=")[0] for cell in cells for span in code(cell)]
    keys = {span for span in spans if re.fullmatch(r"[a-z]+(_[a-z]+)+", span)}
    assert len(keys) > 10
    assert keys - others <= set(FIELDS)


def test_the_configs_of_nanogpt_are_all_here():
    names = ["train_gpt2", "train_shakespeare_char", "finetune_shakespeare", "eval_gpt2"]
    names += [f"eval_gpt2_{size}" for size in ("medium", "large", "xl")]
    assert "the same seven files" in NANOGPT
    assert len(names) == 7
    assert all((ROOT / "config" / f"{name}.py").is_file() for name in names)


# -- results and checkpoints ----------------------------------------------------------------------
@pytest.mark.slow
def test_the_keys_of_metrics_are_in_a_runs_results(desk):
    base = {key: value for key, value in RUN.items() if key != "threads"} | {"max_iters": 2}
    script = (
        "import json, experiments\n"
        "runner = experiments.ExperimentRunner(output_root='out')\n"
        f"runner.run_grid('grid', {base!r}, {{'n_layer': [1]}})\n"
        "print(json.dumps(runner.load_metrics('grid')[0]))\n"
    )
    (desk / "script.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{script}")
    done = run_python("script.py", cwd=desk)
    metrics = json.loads(done.stdout.splitlines()[-1])
    text = section(FORK, "metrics.json")
    keys = {word for _, here in rows(text) for word in code(here)}
    assert len(keys) >= 10
    added = text.split("New beside them are", 1)[1].split("\n\n")[0]
    beside = {"load_metrics", "parametrization"}  # what adds one of them; a part of the config
    assert (keys | set(code(added))) - beside <= set(metrics)
    assert "parametrization" in metrics["config"]
    assert metrics["iter_num"] == 2


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a clone of nanoGPT after its recipe for characters."""
    folder = tmp_path_factory.mktemp("nanoGPT")
    symbols = sorted(set(TEXT))
    data = folder / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    ids = [symbols.index(letter) for letter in TEXT * 40]
    for split, part in (("train", ids[:1700]), ("val", ids[1700:])):
        np.array(part, "<u2").tofile(data / f"{split}.bin")
    meta = {"vocab_size": len(symbols), "itos": dict(enumerate(symbols))}
    meta["stoi"] = {letter: i for i, letter in enumerate(symbols)}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    state = nanogpt_state(vocab_size=len(symbols))
    path = folder / "out-shakespeare-char" / "ckpt.pt"
    save_nanogpt(path, state, dataset="shakespeare_char", vocab_size=len(symbols))
    return folder


@pytest.mark.slow
def test_a_checkpoint_is_brought_as_the_page_says(clone):
    block = section(NANOGPT, "Bring a checkpoint").split("```\n")[1]
    lines = block.splitlines()
    assert len(lines) == 5
    for line in lines:
        name, verb, *arguments = shlex.split(line)
        assert name == "nanoscale"
        if verb == "train" and "--max_iters=0" not in arguments:
            arguments += ["--max_iters=2", "--warmup_iters=0", "--gradient_accumulation_steps=1"]
        if verb == "train":
            arguments += ["--device=cpu", "--compile=False", "--threads=1"]
        if verb == "sample":
            arguments += ["--num_samples=1", "--max_new_tokens=3"]
        done = run_nanoscale(verb, *arguments, cwd=clone)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_forks_checkpoint_is_refused_as_the_page_says(desk):
    path = desk / "ckpt.pt"
    torch.save({"model": {}, "optimizer": [], "model_args": None, "config": {}}, path)
    done = run_nanoscale("eval", str(path), "--data=tiny", cwd=desk)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*model_args.*\n", done.stderr)
    assert "has no `model_args`, and is refused in one line" in " ".join(FORK.split())
