"""Sampling: the same tokens with and without the cache, the right distribution, clear refusals."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import ROOT

from nanoscale.__main__ import main
from nanoscale.commands import main as cli
from nanoscale.commands.sample import options_of
from nanoscale.data.dataset import open_dataset
from nanoscale.data.prepare import prepare
from nanoscale.data.tokenizer import Characters
from nanoscale.errors import UserError
from nanoscale.model.gpt import GPT
from nanoscale.spec.config import ExperimentConfig, ParametrizationConfig, ResolvedConfig
from nanoscale.spec.resolve import resolve
from nanoscale.store.files import write_json
from nanoscale.store.folder import BEST, CHECKPOINT, CONFIG, RunFolder, run_spec
from nanoscale.training import checkpoint
from nanoscale.training import sample as sampling
from nanoscale.training.sample import beginning, choose, generate
from nanoscale.training.sample_options import SampleOptions

V, T = 23, 16
TEXT = "the cat sat on the mat, the dog sat on the log.\n" * 8

FLAGS = {
    "gpt2": {},
    "bias": {"bias": True, "tie_embeddings": False},
    "llama": {
        "use_rope": True,
        "use_rmsnorm": True,
        "use_swiglu": True,
        "n_kv_head": 2,
        "use_qk_norm": True,
        "tie_embeddings": False,
    },
    "muP": {"parametrization": ParametrizationConfig(mode="muP", base_n_embd=16), "use_rope": True},
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def typed_config(**changes: object) -> ExperimentConfig:
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": T, "vocab_size": V}
    return ExperimentConfig(**(shape | {"compile": False, "device": "cpu"} | changes))


def config_of(**changes: object) -> ResolvedConfig:
    return resolve(typed_config(**changes), V)


def lively(config: ResolvedConfig) -> GPT:
    """A model whose weights are large enough that its text wanders."""
    model = GPT(config).eval()
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=random), alpha=0.25)
    return model


# -- the cache --------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1.0], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("length", "new"), [(3, 8), (1, T - 1), (3, 3 * T), (T, T), (T + 5, T)])
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_tokens_are_the_same_with_and_without_the_cache(flags, length, new, temperature):
    model = lively(config_of(**flags))
    idx = torch.arange(3 * length).reshape(3, length) * 7 % V
    cached, uncached = (
        generate(model, idx, new, temperature, 20, use_cache) for use_cache in (True, False)
    )
    assert cached.shape == (3, length + new)
    assert torch.equal(cached[:, :length], idx)
    assert torch.equal(cached, uncached)
    distinct = len(cached[:, length:].unique())
    assert distinct > (2 if temperature == 0 else 8), "degenerate text proves nothing"


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_greedy_text_is_that_of_a_plain_loop(flags):
    model, idx = lively(config_of(**flags)), torch.tensor([[1, 2]])
    expected = idx
    with torch.no_grad():
        for _ in range(2 * T):
            likeliest = model(expected[:, -T:])[0][:, -1].argmax(dim=-1, keepdim=True)
            expected = torch.cat([expected, likeliest], dim=1)
    assert torch.equal(generate(model, idx, 2 * T, temperature=0), expected)


def test_the_cache_spares_the_tokens_already_seen(monkeypatch):
    model, widths = lively(config_of()), []
    hidden = GPT.hidden
    monkeypatch.setattr(
        GPT,
        "hidden",
        lambda self, idx, *rest: (widths.append(idx.size(1)), hidden(self, idx, *rest))[1],
    )
    generate(model, torch.zeros(1, 3, dtype=torch.long), T)
    assert widths == [3] + [1] * (T - 3) + [T] * 2


def test_half_precision_fills_the_cache_with_its_own_type(monkeypatch):
    model, types = lively(config_of()), set()
    extend = sampling_cache().extend
    monkeypatch.setattr(
        sampling_cache(),
        "extend",
        lambda self, layer, k, v: (
            types.add((self.buffers.dtype, k.dtype)),
            extend(self, layer, k, v),
        )[1],
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        generate(model, torch.zeros(1, 3, dtype=torch.long), 4)
    assert types == {(torch.bfloat16, torch.bfloat16)}


def sampling_cache() -> type:
    from nanoscale.model.gpt import KVCache

    return KVCache


# -- the draws --------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 4), (1.0, 1)])
def test_draws_have_the_softmax_distribution(temperature, top_k):
    n, logits = 20_000, np.array([1.0, -0.5, 0.3, 2.0, 0.0, -3.0, 1.5])
    p = np.exp(logits / temperature)
    if top_k:
        p[np.argsort(-logits)[top_k:]] = 0
    p /= p.sum()
    tokens = choose(np.tile(logits, (n, 1)), temperature, top_k, seed=3, t=11)
    counts = np.bincount(tokens, minlength=7)
    assert (counts[p == 0] == 0).all()
    assert np.abs(counts / n - p).max() < 4 * np.sqrt(0.25 / n)


def test_successive_draws_are_independent():
    logits = np.zeros((2000, 2))
    a, b = (choose(logits, 1.0, None, 7, t) for t in (0, 1))
    assert abs(np.mean(a == b) - 0.5) < 4 * np.sqrt(0.25 / 2000)


def test_frozen_draws():
    """The same seed must give the same text in every version."""
    rows = [choose(np.zeros((3, 10)), 1.0, None, 1337, t).tolist() for t in range(4)]
    assert rows == FROZEN


FROZEN = [[6, 7, 3], [9, 1, 5], [1, 4, 4], [0, 1, 7]]


def test_a_sample_depends_on_nothing_beside_it():
    model = lively(config_of())
    alone = generate(model, torch.tensor([[3, 4]]), 2 * T)
    beside = generate(model, torch.tensor([[3, 4], [5, 6], [3, 4]]), 2 * T)
    assert torch.equal(beside[:1], alone)
    assert not torch.equal(beside[2], beside[0])  # the same prompt, another sample
    shorter = generate(model, torch.tensor([[3, 4]]), 5)
    assert torch.equal(shorter, alone[:, :7])


def test_temperature_top_k_and_seed_matter():
    model, idx = lively(config_of()), torch.tensor([[3]])
    base = generate(model, idx, 30, temperature=1.0)
    assert not torch.equal(base, generate(model, idx, 30, temperature=3.0))
    assert not torch.equal(base, generate(model, idx, 30, temperature=1.0, top_k=2))
    assert not torch.equal(base, generate(model, idx, 30, temperature=1.0, seed=1))
    greedy = generate(model, idx, 30, temperature=0)
    assert torch.equal(greedy, generate(model, idx, 30, temperature=1.0, top_k=1))
    assert torch.equal(greedy, generate(model, idx, 30, temperature=1e-309))


def test_ties_at_the_kth_place_are_all_kept():
    tokens = choose(np.tile([0.0, 1.0, 1.0, 1.0], (200, 1)), 1.0, 2, 0, 0)
    assert set(tokens.tolist()) == {1, 2, 3}


def test_the_noise_is_finite_at_both_ends_of_the_words(monkeypatch):
    ends = np.array([0, 2**64 - 1], np.uint64)
    monkeypatch.setattr(sampling, "philox_words", lambda *_: ends)
    u = sampling.uniforms(0, 1, 0, 2)
    assert 0 < u[0, 0] < u[0, 1] < 1
    assert np.isfinite(-np.log(-np.log(u))).all()


def test_padding_of_the_vocabulary_is_never_drawn():
    model, idx = lively(config_of()), torch.tensor([[3]] * 4)
    assert generate(model, idx, 30, temperature=5.0).max() >= 10
    assert generate(model, idx, 30, temperature=5.0, symbols=10).max() < 10


# -- the command --------------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder `out` with weights, on a character dataset beside it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    prepare("text", input="text.txt", kind="char", out=Path("letters"))
    return make_run("out")


def make_run(path: str, name: str = "letters", **changes: object) -> RunFolder:
    dataset = open_dataset(name)
    config = resolve(
        typed_config(dataset=name, **({"vocab_size": None} | changes)), dataset.vocab_size
    )
    spec, folder = run_spec(config, dataset, {}), RunFolder(path)
    folder.create(spec)
    checkpoint.save(folder / BEST, spec, step=1, val_loss=1.0, model=lively(config).state_dict())
    return folder


def text_of(capsys, *arguments: str) -> list[str]:
    capsys.readouterr()
    assert cli.dispatch(["sample", *arguments]) == 0
    *samples, rest = capsys.readouterr().out.split("\n---------------\n")
    assert rest == ""
    return samples


def test_prints_each_sample_after_its_prompt_and_a_line(run, capsys):
    samples = text_of(capsys, "--start=the dog", "--num_samples=3", "--max_new_tokens=20")
    assert len(samples) == 3
    assert len(set(samples)) == 3
    assert all(s.startswith("the dog") and len(s) == len("the dog") + 20 for s in samples)
    assert len(text_of(capsys, "--max_new_tokens=1")) == 10  # nanoGPT's default


@pytest.mark.slow
def test_flags_reach_the_text(run, capsys):
    base = ("--start=the", "--num_samples=2", "--max_new_tokens=30")
    text = text_of(capsys, *base)
    assert text_of(capsys, *base) == text
    assert text_of(capsys, *base, "--use_cache=False") == text
    assert text_of(capsys, *base, "--num_samples=1") == text[:1]
    assert text_of(capsys, *base, "--max_new_tokens=10") == [s[:13] for s in text]
    for flag in ("--seed=1", "--temperature=3", "--top_k=1", "--start=sat"):
        assert text_of(capsys, *base, flag) != text
    greedy = text_of(capsys, *base, "--temperature=0")
    assert greedy[0] == greedy[1]


def test_dtype_is_that_of_the_products(run, capsys, monkeypatch):
    seen, real = [], sampling.generate
    monkeypatch.setattr(
        sampling,
        "generate",
        lambda *a, **k: (
            seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")),
            real(*a, **k),
        )[1],
    )
    for flags in (["--dtype=bfloat16"], []):
        assert text_of(capsys, "--start=a", "--max_new_tokens=3", *flags)
    assert seen == [torch.bfloat16, False]


def test_the_prompt_comes_from_a_file(run, capsys):
    Path("prompt.txt").write_text("\ufeffon the\nlog")  # as some editors begin a file
    assert text_of(capsys, "--start=FILE:prompt.txt", "--max_new_tokens=2")[0].startswith(
        "on the\nlog"
    )


def test_a_run_and_a_prompt_may_lie_at_home(run, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    Path("prompt.txt").write_text("on the")
    flags = (f"--out_dir=~/{run.path.name}", "--start=FILE:~/prompt.txt", "--max_new_tokens=0")
    assert set(text_of(capsys, *flags)) == {"on the"}
    with pytest.raises(UserError, match="no symbol for '~'"):
        cli.dispatch(["sample", "--start=~"])


def test_a_config_file_sets_what_flags_after_it_change(run):
    Path("mine.py").write_text(
        "num_samples = 2\ntop_k = None\nseed = num_samples\n"
        """start = "'sat'"\n"""
    )
    options = options_of(["--seed=9", "mine.py", "--num_samples=4"])
    assert options == SampleOptions(num_samples=4, top_k=None, start="'sat'", seed=2)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("a b", "a b"),
        ('"\\n"', "\n"),
        ("'a\\tb'", "a\tb"),
        ('"open', '"open'),
        ("12", "12"),
        ("'tis' a", "'tis' a"),
        ("a=b", "a=b"),
    ],
)
def test_a_quoted_start_is_read_as_python_does(typed, meant):
    assert options_of([f"--start={typed}"]).start == meant


def test_the_best_weights_are_preferred_to_the_newest(run):
    shutil.copy(run / BEST, run / CHECKPOINT)
    assert sampling.open_run("out")[0].name == BEST
    (run / BEST).unlink()
    assert sampling.open_run("out")[0].name == CHECKPOINT


@pytest.mark.slow
def test_a_vocabulary_wider_than_the_datasets_is_decoded(run, capsys):
    make_run("padded", vocab_size=200)
    assert text_of(capsys, "--out_dir=padded", "--temperature=9", "--top_k=None")


@pytest.mark.parametrize("choice", ["gpt2", "train:300", "byte"])
def test_text_of_any_tokenizer(run, capsys, gpt2_merges, choice):
    Path("mixed.txt").write_text("naïve cafés — 😀 and so on.\n" * 60, encoding="utf-8")
    prepare("text", input="mixed.txt", tokenizer=choice, out=Path("data/mixed"))
    dataset = open_dataset("mixed")
    make_run("mixed", "mixed")
    flags = ("--out_dir=mixed", "--start=naïve", "--temperature=9", "--top_k=None")
    samples = text_of(capsys, *flags, "--num_samples=4", "--max_new_tokens=12")
    assert all(text.startswith("naïve") for text in samples)
    assert len(set(samples)) == 4
    assert dataset.decode(dataset.encode("naïve — 😀")) == "naïve — 😀"
    if choice == "gpt2":
        assert dataset.vocab_size == 50304


def test_no_token_that_only_pads_gpt2s_is_drawn(run, monkeypatch, gpt2_merges):
    Path("words.txt").write_text("word upon word.\n" * 60)
    prepare("text", input="words.txt", tokenizer="gpt2", out=Path("data/words"))
    make_run("words", "words")
    asked = []
    monkeypatch.setattr(
        sampling,
        "generate",
        lambda model, idx, *_, symbols, **__: (asked.append(symbols), idx)[1],
    )
    sampling.sample(SampleOptions(out_dir="words", num_samples=1))
    assert asked == [50257]


def test_help_lists_every_key(capsys):
    assert cli.dispatch(["sample", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{f.name}=" in shown for f in fields(SampleOptions))


BAD = [
    ("--temperture=1", "--temperture: unknown key; did you mean 'temperature'?"),
    ("--start", "--start: flags are written --key=value"),
    ("-x", "--x: unknown key"),
    ("--num_samples=0", "--num_samples=0: must be at least 1"),
    ("--num_samples=-3", "--num_samples=-3: must be at least 1"),
    ("--num_samples=two", "--num_samples=two: expected a whole number"),
    ("--max_new_tokens=-1", "--max_new_tokens=-1: must be at least 0"),
    ("--temperature=-0.5", "--temperature=-0.5: must be at least 0"),
    ("--temperature=nan", "--temperature=nan: expected a number"),
    ("--top_k=0", "--top_k=0: must be at least 1"),
    ("--seed=-1", "--seed=-1: must be at least 0"),
    ("--dtype=int8", "--dtype=int8: choose"),
    ("--init_from=gpt2-xxl", "init_from=gpt2-xxl: no such file or folder, and no known name; did"),
    ("--use_cache=maybe", "--use_cache=maybe: expected True or False"),
    ("--start=", "start is empty"),
    ("--start=FILE:nowhere.txt", "start=FILE:nowhere.txt: cannot be read"),
    ("--start=FILE:.", "start=FILE:.: cannot be read"),
    ("--start=FILE:empty.txt", "the file is empty"),
    ("--start=FILE:latin.txt", "not UTF-8 text"),
    ("--start=Zebra", "has no symbol for 'Z'"),
    ("--out_dir=nowhere", "out_dir=nowhere: no run there; train one first"),
    ("--device=tpu", "device=tpu: not available here"),
    ("out", "a run folder is --out_dir=out"),
    ("absent.py", "absent.py: no such config file"),
    ("train.py", "train.py: learning_rate: unknown key"),
    ("wrong.py", "wrong.py: top_k=many: expected a whole number"),
]


@pytest.mark.parametrize(("argument", "message"), BAD, ids=[a for a, _ in BAD])
def test_bad_input_is_refused_in_one_line(run, capsys, argument, message):
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes(b"\xe9")
    Path("train.py").write_text("learning_rate = 1e-3")
    Path("wrong.py").write_text("top_k = 'many'")
    capsys.readouterr()
    assert main(["sample", argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        cli.dispatch(["sample", *arguments])
    return str(caught.value)


def test_a_run_whose_weights_or_data_are_gone_is_refused(run):
    with open("letters/train.bin", "ab") as file:
        file.write(b"\0\0")
    (Path("letters") / "meta.json").unlink()
    assert "has changed since" in refusal("--start=a")
    shutil.move("letters", "elsewhere")
    assert "out_dir=out: its text needs its dataset: no dataset 'letters'" in refusal("--start=a")
    (run / BEST).unlink()
    assert "saved no weights yet (it is WAITING)" in refusal("--start=a")


@pytest.mark.parametrize("dataset", ["letters", "/gone/letters"])
def test_data_that_moved_are_found_by_data_root(run, capsys, dataset):
    spec = run.spec()
    write_json(run / CONFIG, replace(spec, config=replace(spec.config, dataset=dataset)).to_json())
    greedy = ("--start=the", "--temperature=0", "--num_samples=1", "--max_new_tokens=4")
    before = text_of(capsys, *greedy) if dataset == "letters" else None
    shutil.move("letters", "elsewhere/letters")
    assert refusal(*greedy).endswith("has it moved, add --data_root=FOLDER")
    after = text_of(capsys, *greedy, "--data_root=elsewhere")
    assert after[0].startswith("the")
    assert before in (None, after)
    assert "no dataset 'letters' in 'nowhere'" in refusal(*greedy, "--data_root=nowhere")


def test_foreign_and_damaged_weights_are_refused(run):
    (run / BEST).write_bytes(b"PK\x03\x04 not a checkpoint")
    assert "not a readable checkpoint" in refusal("--start=a")
    other = make_run("other", n_embd=16)
    shutil.copy(other / BEST, run / BEST)
    assert "its tensors do not fit" in refusal("--start=a")


def test_refusals_never_load_torch():
    code = (
        "import sys; from nanoscale.__main__ import main\n"
        "for bad in ('--x=1', '--top_k=0', '--out_dir=/nowhere', '--start=', '--help'):\n"
        "    main(['sample', bad])\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_door_answers():
    done = subprocess.run(
        [sys.executable, "sample.py", "--temperture=1"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --temperture: unknown key")


def test_a_vocabulary_without_lines_begins_with_its_first_symbol():
    """So the command that a finished run names works on every dataset."""
    letters = Characters(["a", "b"])
    dataset = SimpleNamespace(tokenizer=letters, encode=letters.encode)
    assert beginning(dataset, SampleOptions().start) == [0]
    assert beginning(dataset, "ba") == [1, 0]
    with pytest.raises(UserError, match="no symbol for '~'"):
        beginning(dataset, "~")
