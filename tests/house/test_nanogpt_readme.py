"""nanoGPT's README, command by command; the clone, the data and the hub are tiny stand-ins."""

from __future__ import annotations

import pickle
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nanogpt import in_hub_form, nanogpt_losses, nanogpt_state
from tiny import ROOT, TEXT

from nanoscale.commands.main import dispatch
from nanoscale.data.tokenizer import GPT2
from nanoscale.errors import exit_code_of
from nanoscale.model import hub
from nanoscale.store.folder import RunFolder

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 16, "vocab_size": 50257}
NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


@pytest.fixture(scope="module")
def clone(tmp_path_factory, gpt2_merges) -> Path:
    """A folder like a clone of nanoGPT, with small data and the hub's cache."""
    desk = tmp_path_factory.mktemp("clone")
    (desk / "config").symlink_to(ROOT / "config")
    (desk / "prompt.txt").write_text("the dog")
    ids = {"shakespeare": GPT2().encode(TEXT), "openwebtext": GPT2().encode(TEXT * 2)}
    letters = sorted(set(TEXT))
    ids["shakespeare_char"] = [letters.index(c) for c in TEXT]
    for name, tokens in ids.items():
        folder = desk / "data" / name
        folder.mkdir(parents=True)
        for split, times in (("train", 30), ("val", 6)):
            np.array(tokens * times, "<u2").tofile(folder / f"{split}.bin")
    symbols = {"itos": dict(enumerate(letters)), "stoi": {c: i for i, c in enumerate(letters)}}
    meta = pickle.dumps({"vocab_size": len(letters), **symbols})
    (desk / "data" / "shakespeare_char" / "meta.pkl").write_bytes(meta)
    for number, name in enumerate(NAMES):
        repository = name if number % 2 else f"openai-community/{name}"  # as either is called
        cache = desk / "hub" / f"models--{repository.replace('/', '--')}"
        in_hub_form(cache / "snapshots" / ("0" * 40), nanogpt_state(seed=number, **SIZES), **SIZES)
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("0" * 40)
    return desk


@pytest.fixture
def run(clone, monkeypatch, capsys) -> Callable[..., str]:
    """What a command of the README prints; `shorter` flags are added to it."""
    from huggingface_hub import constants

    monkeypatch.chdir(clone)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(clone / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.downloaded.cache_clear()

    def command(line: str, *shorter: str) -> str:
        python, script, *arguments = shlex.split(line)
        assert python == "python"
        verb = script.removesuffix(".py")
        capsys.readouterr()
        code = exit_code_of(lambda: dispatch([verb, *arguments, *shorter]))
        out, err = capsys.readouterr()
        assert (code, err) == (0, ""), err
        return out

    return command


RECIPE = (
    "python train.py config/train_shakespeare_char.py --device=cpu --compile=False "
    "--eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 "
    "--n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
ONE = ("--num_samples=1", "--max_new_tokens=3")


def test_train_on_characters_and_sample(run):
    out = run(RECIPE, "--max_iters=2", "--lr_decay_iters=2")
    assert "COMPLETE: results in out-shakespeare-char/metrics.json" in out
    text = run("python sample.py --out_dir=out-shakespeare-char --device=cpu", *ONE)
    assert len(text.partition("\n---------------\n")[0]) == len("\n") + 3


@pytest.mark.parametrize("name", NAMES)
def test_eval_configs_print_the_loss_of_the_weights_and_end(run, clone, name):
    out = run(f"python train.py config/eval_{name.replace('-', '_')}.py")
    tokens = np.fromfile(clone / "data" / "openwebtext" / "val.bin", "<u2").astype(np.int64)
    T = SIZES["block_size"]
    starts = np.arange(0, len(tokens) - T, T)
    X, Y = (torch.from_numpy(np.stack([tokens[s + d : s + d + T] for s in starts])) for d in (0, 1))
    state = nanogpt_state(seed=NAMES.index(name), **SIZES)
    loss = nanogpt_losses(state, X, Y).mean().item()
    said = re.search(r"step 0: val loss ([\d.]+)\n", out)
    assert float(said.group(1)) == pytest.approx(loss, abs=6e-5)
    assert not (clone / "out").exists()


def test_finetune_and_sample_what_came_of_it(run):
    out = run("python train.py config/finetune_shakespeare.py", "--max_iters=2", "--device=cpu")
    assert "COMPLETE: results in out-shakespeare/metrics.json" in out
    config = RunFolder("out-shakespeare").spec().config
    assert (config.n_embd, config.block_size, config.vocab_size) == (8, 16, 50257)
    text = run("python sample.py --out_dir=out-shakespeare --start=FILE:prompt.txt", *ONE)
    assert text.startswith("the dog")


def test_sample_from_pretrained_weights_by_name(run):
    out = run(
        'python sample.py --init_from=gpt2-xl --start="What is the answer to life, the universe, '
        'and everything?" --num_samples=5 --max_new_tokens=100',
        "--max_new_tokens=4",
    )
    samples = out.split("\n---------------\n")
    assert len(samples) == 6
    assert all(text.startswith("What is the answer to life") for text in samples[:5])


def test_a_name_that_is_not_in_the_cache_is_one_line(run, capsys):
    for name in ("gpt2-xl-more/of-it", "meta-llama/Llama-3.2-1B"):
        arguments = ["train", "--dataset=shakespeare", f"--init_from={name}", "--out_dir=new"]
        assert exit_code_of(lambda arguments=arguments: dispatch(arguments)) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"init_from={name}: no such file or folder here, and the Hugging Face hub" in err
    assert not Path("new").exists()
