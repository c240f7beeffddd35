"""Weights out and in: transformers is the oracle of both, offline, on models of a few thousand."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import assert_refused
from tiny import ROOT, tiny_config

from nanoscale.__main__ import main
from nanoscale.data.dataset import evaluation_windows, open_dataset, windows
from nanoscale.data.prepare import prepare
from nanoscale.errors import UserError
from nanoscale.model import exporting
from nanoscale.model.gpt import GPT
from nanoscale.model.pretrained import read_hugging_face
from nanoscale.spec.config import ResolvedConfig, from_flat
from nanoscale.spec.families import FAMILIES, family_of, lacking, their_config
from nanoscale.spec.resolve import resolve
from nanoscale.store.folder import BEST, RunFolder, run_spec
from nanoscale.training import checkpoint
from nanoscale.training.sample import generate

V, T = 11, 8
SCHEMES = ("SP", "muP", "CompleteP")
BASES = {"base_n_embd": 8, "base_n_layer": 1, "base_head_dim": 16, "alpha": 0.7}
TUNED = {"input_mult": 1.7, "output_mult": 2.3}


@pytest.fixture(scope="module")
def hf() -> Iterator[Any]:
    """transformers, which never asks the hub."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def config_of(family: Any, mode: str, **flags: Any) -> ResolvedConfig:
    """A config of a family's parts in which no multiplier is 1, but under SP."""
    sizes = BASES | (TUNED if mode != "SP" else {})
    return tiny_config(**family.parts, mode=mode, init_std=0.3, **sizes, **flags)


def lively(config: ResolvedConfig, seed: int = 0) -> GPT:
    """A model in which no gain is 1 and no bias 0."""
    model = GPT(config).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.25)
    return model


def write(folder: Path, model: GPT) -> Path:
    """An export's config and weights."""
    family = family_of(model.config)
    folder.mkdir()
    record = json.dumps(their_config(family, model.config, None))
    (folder / "config.json").write_text(record)
    tensors = exporting.exported(family, model.config, model.state_dict())
    exporting.write_safetensors(folder / "model.safetensors", tensors)
    return folder


def opened(hf: Any, folder: Path) -> Any:
    """What transformers makes of a folder, every tensor of which it must know and need."""
    model, found = hf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()


def imported(folder: Path) -> GPT:
    pretrained = read_hugging_face(folder)
    vocab_size = pretrained.keys["vocab_size"]
    assert isinstance(vocab_size, int)
    model = GPT(resolve(from_flat(pretrained.keys), vocab_size)).eval()
    model.load_state_dict(dict(pretrained.tensors))
    return model


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference of logits, relative to the largest logit."""
    return float((ours - theirs).abs().max() / ours.abs().max())


@torch.no_grad()
def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    out = model(tokens)
    logits: torch.Tensor = out[0] if isinstance(out, tuple) else out.logits
    return logits


def tokens(seed: int = 1, length: int = T) -> torch.Tensor:
    return torch.randint(V, (3, length), generator=torch.Generator().manual_seed(seed))


# -- the same function ----------------------------------------------------------------------------
def matrix() -> list[Any]:
    """Families x schemes x tied x groups of heads x biases; a tenth of them in `make test`."""
    cases = []
    for k, family in enumerate(FAMILIES):
        for mode, tied, kv, bias in itertools.product(range(3), (0, 1), (4, 2), (0, 1)):
            flags = {"tie_embeddings": bool(tied), "n_kv_head": kv, "bias": bool(bias)}
            if lacking(family, tiny_config(**family.parts, **flags)):
                continue
            sampled = mode == (k + tied + 1) % 3 and kv == 2 + 2 * tied
            sampled &= bias == tied or family.model_type in ("qwen3", "stablelm")
            marks = () if sampled else pytest.mark.soak
            name = f"{family.model_type}-{SCHEMES[mode]}-tied{tied}-kv{kv}-bias{bias}"
            cases.append(pytest.param(family, SCHEMES[mode], flags, marks=marks, id=name))
    return cases


@pytest.mark.slow
@pytest.mark.parametrize(("family", "mode", "flags"), matrix())
def test_logits_are_ours_there_and_back(hf, tmp_path, family, mode, flags):
    model = lively(config_of(family, mode, **flags))
    folder = write(tmp_path / "hf", model)
    ours = logits_of(model, tokens())
    assert apart(ours, logits_of(opened(hf, folder), tokens())) < 1e-5
    again = imported(folder)
    assert apart(ours, logits_of(again, tokens())) < 1e-5
    if family.model_type != "gpt2":  # whose biases and key heads are all there are
        assert again.config.bias == model.config.bias
        assert again.config.n_kv_head == model.config.n_kv_head


FOLDS = {  # a piece of a tensor's name -> the family that is looked at
    ".wte.": "llama",
    ".wpe.": "gpt2",
    ".c_q.weight": "llama",
    ".c_q.bias": "llama",
    ".q_norm.": "qwen3",
    ".attn.c_proj.weight": "llama",
    ".mlp.c_proj.weight": "gpt2",
    ".c_proj.bias": "llama",
    ".ln_f.weight": "llama",
    ".ln_f.bias": "gpt2",
}


@pytest.mark.parametrize("piece", FOLDS)
def test_no_fold_is_idle(tmp_path, monkeypatch, piece):
    """What the test above would see, were it left out."""
    family = next(f for f in FAMILIES if f.model_type == FOLDS[piece])
    model = lively(config_of(family, "CompleteP", bias=family.model_type != "qwen3"))
    whole = exporting.folded_into

    def without(name: str, *given: Any) -> float:
        return 1.0 if piece in name else whole(name, *given)

    monkeypatch.setattr(exporting, "folded_into", without)
    folder = write(tmp_path / "hf", model)
    assert apart(logits_of(model, tokens()), logits_of(imported(folder), tokens())) > 1e-3


def test_the_multipliers_of_a_users_scheme_fold_too(tmp_path):
    rules = str(ROOT / "docs" / "howto" / "my_rules.py")
    config = tiny_config(rules=rules, mode="muP-embed", init_std=0.3, **BASES, **TUNED)
    model = lively(config)
    assert model.multipliers.logits != 1
    again = imported(write(tmp_path / "hf", model))
    assert apart(logits_of(model, tokens()), logits_of(again, tokens())) < 1e-5


def made_by(hf: Any, architecture: str, **changes: Any) -> Any:
    """A random model of transformers, no gain of which is 1 and no bias 0."""
    torch.manual_seed(0)
    family = next(f for f in FAMILIES if f.architecture == architecture)
    base = tiny_config(**family.parts, n_kv_head=2 if "n_kv_head" in family.sizes else 4)
    record = dict(their_config(family, base, None)) | changes
    config = hf.AutoConfig.for_model(**record)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.25)
    return model


THEIRS = {
    "GPT-2": ("GPT2LMHeadModel", {}),
    "GPT-2 with a head of its own": ("GPT2LMHeadModel", {"tie_word_embeddings": False}),
    "Llama": ("LlamaForCausalLM", {"intermediate_size": 56}),
    "tied Llama": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "Llama with some biases": ("LlamaForCausalLM", {"attention_bias": True}),
    "Qwen3": ("Qwen3ForCausalLM", {"rms_norm_eps": 1e-6}),
    "Qwen3 with biases": ("Qwen3ForCausalLM", {"attention_bias": True}),
    "StableLm with biases": ("StableLmForCausalLM", {"use_qkv_bias": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", THEIRS)
def test_a_random_model_of_theirs_comes_in(hf, tmp_path, case):
    architecture, changes = THEIRS[case]
    model = made_by(hf, architecture, **changes)
    model.save_pretrained(tmp_path, max_shard_size="6KB" if "Qwen3" in case else "1GB")
    assert apart(logits_of(model, tokens()), logits_of(imported(tmp_path), tokens())) < 1e-5


@pytest.mark.slow
def test_a_gpt2_of_openai_comes_in_with_a_warning(hf, tmp_path):
    """Its GELU is an approximation by tanh; ours and nanoGPT's are exact."""
    model = made_by(hf, "GPT2LMHeadModel", activation_function="gelu_new")
    model.save_pretrained(tmp_path)
    (line,) = read_hugging_face(tmp_path).warnings
    assert "gelu_new" in line
    assert 1e-6 < apart(logits_of(model, tokens()), logits_of(imported(tmp_path), tokens())) < 1e-2


@pytest.mark.slow
def test_a_base_models_file_and_narrow_floats_come_in(hf, tmp_path):
    """As the hub's gpt2 has it: names without their root, with the masks of old."""
    from safetensors.torch import load_file, save_file

    model = made_by(hf, "GPT2LMHeadModel").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in held.items()}
    bare |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "lm_head.weight": bare["wte.weight"] + 0}
    save_file(bare, tmp_path / "model.safetensors")
    ours = imported(tmp_path)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert apart(logits_of(model.float(), tokens()), logits_of(ours, tokens())) < 1e-5


# -- a run's folder -------------------------------------------------------------------------------
def make_run(
    folder: str, seed: int, family: Any = FAMILIES[1], data: str = "tiny", **flags: Any
) -> GPT:
    """A run folder with weights, on a data set of the desk's; its model."""
    opened = open_dataset(data)
    flags = {"vocab_size": 17} | flags
    flags["vocab_size"] = flags["vocab_size"] or opened.vocab_size
    config = config_of(family, SCHEMES[seed % 3], dataset=data, block_size=16, **flags)
    model = lively(config, seed)
    spec, run = run_spec(config, opened, {}), RunFolder(folder)
    run.create(spec)
    checkpoint.save(run / BEST, spec, step=3, val_loss=1.0, model=model.state_dict())
    return model


def random_runs() -> list[Any]:
    """Three configs of each family; one of each in `make test`."""
    cases = []
    for k, family in enumerate(FAMILIES):
        for seed in range(3):
            flags: dict[str, Any] = {"n_layer": 1 + seed, "n_kv_head": (4, 2, 1)[(seed + k) % 3]}
            flags |= {"n_embd": (16, 32, 48)[seed], "tie_embeddings": bool((k + seed) % 2)}
            marks = () if seed == k % 3 else pytest.mark.soak
            name = f"{family.model_type}-{seed}"
            cases.append(pytest.param(family, seed, flags, marks=marks, id=name))
    return cases


@pytest.mark.slow
@pytest.mark.parametrize(("family", "seed", "flags"), random_runs())
def test_greedy_text_is_that_of_our_sampler(hf, desk, family, seed, flags):
    """Of a vocabulary padded from 15 to 17, which neither may draw."""
    model = make_run("run", seed, family, **flags)
    symbols = open_dataset("tiny").vocab_size
    assert symbols < 17
    assert main(["export", "run", "hf"]) == 0
    theirs = opened(hf, desk / "hf")
    prompt = tokens(seed, length=4)
    ours = generate(model, prompt, 12, temperature=0, symbols=symbols)
    mask = torch.ones_like(prompt)
    found = theirs.generate(prompt, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert found.tolist() == ours.tolist()
    assert int(ours.max()) < symbols
    assert len(set(ours[:, 4:].flatten().tolist())) > 1


def test_an_export_loses_the_same_on_every_window(desk):
    model = make_run("run", 2)
    assert main(["export", "run", "hf"]) == 0
    again = imported(desk / "hf")
    for split, part in open_dataset("tiny").tokens.items():
        starts = evaluation_windows(len(part), 16, 1000)
        X, Y = map(torch.from_numpy, windows(part, starts, 16))
        with torch.no_grad():
            losses = [m(X, Y, by_token=True)[1].mean(dim=1) for m in (model, again)]
        assert len(losses[0]) > 5, split
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


def test_what_is_said_and_written(desk, capsys):
    model = make_run("run", 0)
    capsys.readouterr()
    assert main(["export", "run", "hf", "--json", "said.json"]) == 0
    said = json.loads((desk / "said.json").read_text())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert said["architecture"] == "LlamaForCausalLM"
    assert said["parameters"] == count
    assert said["step"] == 3
    assert said["weights"] == BEST
    out = capsys.readouterr().out
    assert f"hf: LlamaForCausalLM, {count:,} parameters" in out
    assert said["run"] in out
    modes = {path.stat().st_mode for path in (desk / "hf").iterdir()}
    assert len(modes) == 1  # anyone may read all of it or none


def test_a_data_set_that_is_gone_is_only_a_warning(desk, capsys):
    make_run("run", 0)
    shutil.move("data/tiny", "data/moved")
    capsys.readouterr()
    assert main(["export", "run", "hf"]) == 0
    assert "warning: no tokenizer goes along: no dataset 'tiny'" in capsys.readouterr().err
    assert 'suppress_tokens": null' in (desk / "hf" / "generation_config.json").read_text()


@pytest.mark.slow
def test_the_tokenizer_goes_along(hf, desk):
    """Characters and bytes, exactly: spaces, newlines and what is no UTF-8 too."""
    (desk / "text.txt").write_text("Ünder the  sea,\n\tx = 'y' and so on; 7 % of it\n" * 40)
    for kind in ("char", "byte"):
        prepare("text", input="text.txt", tokenizer=kind, out=Path(f"data/{kind}"))
        make_run(f"{kind}-run", 0, data=kind, vocab_size=None)
        assert main(["export", f"{kind}-run", f"{kind}-hf"]) == 0
        theirs = hf.AutoTokenizer.from_pretrained(desk / f"{kind}-hf")
        data = open_dataset(kind)
        text = "  the sea,\n\n\tÜ = 'y'  "
        assert theirs(text)["input_ids"] == data.encode(text)
        ids = data.tokens["val"][:30].tolist()
        for given in (data.encode(text), ids, ids[1:7], data.encode("Ü")[:1]):
            assert theirs.decode(given) == data.decode(given)
        record = json.loads((desk / f"{kind}-hf" / "config.json").read_text())
        assert record["eos_token_id"] is None  # a character ends nothing


@pytest.mark.slow
def test_a_trained_tokenizer_ends_text(hf, desk):
    text = " ".join(f"word{i % 37} and {i % 11}," for i in range(2000))
    (desk / "text.txt").write_text(text)
    prepare("text", input="text.txt", tokenizer="train:300", out=Path("data/own"))
    make_run("run", 0, data="own", vocab_size=320)
    assert main(["export", "run", "hf"]) == 0
    theirs = hf.AutoTokenizer.from_pretrained(desk / "hf")
    data = open_dataset("own")
    assert theirs(text[:200])["input_ids"] == data.encode(text[:200])
    assert data.tokenizer is not None
    end = data.tokenizer.end
    model = opened(hf, desk / "hf")
    assert theirs.eos_token_id == model.generation_config.eos_token_id == model.config.eos_token_id
    assert theirs.eos_token_id == end == 0
    assert model.generation_config.suppress_tokens == list(range(data.vocab_size, 320))


# -- refusals -------------------------------------------------------------------------------------
def no_weights(desk: Path) -> None:
    (desk / "run" / BEST).unlink()


def kept_none(desk: Path) -> None:
    no_weights(desk)
    record = json.loads((desk / "run" / "config.json").read_text())
    record["config"]["keep"] = "none"
    (desk / "run" / "config.json").write_text(json.dumps(record))
    RunFolder("run").set_status(state="COMPLETE")
    (desk / "run" / "metrics.json").write_text("{}")


def other_weights(desk: Path) -> None:
    make_run("other", 0, n_layer=1)
    shutil.copy(desk / "other" / BEST, desk / "run" / BEST)


def truncated(path: str) -> Callable[[Path], None]:
    return lambda desk: os.truncate(desk / path, 100)


OUT = {
    "no run": (None, ["export", "nowhere", "hf"], "RUN=nowhere", "no run there"),
    "no weights": (no_weights, ["export", "run", "hf"], "RUN=run", "train it further"),
    "weights that were not kept": (kept_none, ["export", "run", "hf"], "RUN=run", "keep=all"),
    "others' weights": (other_weights, ["export", "run", "hf"], BEST, "do not fit"),
    "damaged weights": (truncated(f"run/{BEST}"), ["export", "run", "hf"], BEST, "truncated"),
    "something there": (None, ["export", "run", "data"], "data is there already"),
    "nowhere to be": (None, ["export", "run", "a/b"], "OUT=a/b", "no folder a"),
    "below a file": (None, ["export", "run", "data/tiny/val.bin/x"], "no folder data/tiny/val.bin"),
    "no place": (None, ["export", "run"], "OUT is missing"),
    "no record": (None, ["export", "run", "hf", "--json=x.txt"], "--json=x.txt", ".json"),
}


@pytest.mark.parametrize("case", OUT)
def test_an_export_that_cannot_be_is_refused(desk, capsys, case):
    spoil, arguments, *words = OUT[case]
    make_run("run", 0)
    if spoil is not None:
        spoil(desk)
    assert_refused(desk, capsys, lambda: main(arguments), *words)


def test_an_export_is_whole_or_not_there(desk, capsys, monkeypatch):
    make_run("run", 0)

    def full(self: Path, text: str, **how: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        words = ("hf", "free some space")
        assert_refused(desk, capsys, lambda: main(["export", "run", "hf"]), *words)

    def refused(tensors: Any, path: Path, metadata: Any) -> None:
        from safetensors import SafetensorError

        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", refused)
    assert_refused(
        desk, capsys, lambda: main(["export", "run", "hf"]), "cannot write hf", "no space"
    )


def test_a_missing_library_is_named(desk, capsys, monkeypatch):
    make_run("run", 0)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    words = ("safetensors", "pip install 'nanoscale[hf]'")
    assert_refused(desk, capsys, lambda: main(["export", "run", "hf"]), *words)


class Bomb:
    """What runs code as it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


def to_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def in_shards(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shards_elsewhere(folder: Path) -> None:
    in_shards(folder)
    index = {"weight_map": {"model.norm.weight": "../m/config.json"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors")

    return spoil


def with_record(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text) and None


NORM = "model.norm.weight"
LLAMA_RECORD = their_config(FAMILIES[1], config_of(FAMILIES[1], "SP"), None)
IN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
    "a broken config": (with_record("{"), "config.json: not valid JSON"),
    "a list for a config": (with_record("[]"), "config.json: not a JSON object"),
    "our run's config": (with_record("{}"), "no config of a model"),
    "blocks that are not there": (
        with_record(json.dumps({**LLAMA_RECORD, "num_hidden_layers": 2**30})),
        "1073741824 blocks",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "a pickle": (to_pickle, "pytorch_model.bin", "a pickle may hold code"),
    "a missing shard": (in_shards, "'model-1.safetensors' is not there"),
    "a shard elsewhere": (shards_elsewhere, "'../m/config.json' is not there"),
    "truncated": (truncated("model.safetensors"), "not a whole safetensors file"),
    "a missing tensor": (with_tensors(lambda held: held.pop(NORM)), f"no tensor {NORM}"),
    "a tensor too many": (
        with_tensors(lambda held: held.update(more=torch.ones(2))),
        "tensor more is of a part",
    ),
    "another size": (
        with_tensors(lambda held: held.update({NORM: torch.ones(8)})),
        f"{NORM} is [8]",
        "makes it [16]",
    ),
    "whole numbers": (
        with_tensors(lambda held: held.update({NORM: torch.ones(16, dtype=torch.int64)})),
        f"{NORM} is torch.int64",
    ),
}


@pytest.mark.parametrize("case", IN)
def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    spoil, *words = IN[case]
    folder = write(Path("m"), GPT(config_of(FAMILIES[1], "SP")))
    spoil(folder)
    with pytest.raises(UserError) as refused:
        read_hugging_face(folder)
    assert "\n" not in str(refused.value)
    for word in ("m", *words):
        assert word in str(refused.value)
    assert not Path("executed").exists()
