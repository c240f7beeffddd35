"""Runs that begin with weights from elsewhere: what they compute, what they are called."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nanogpt import SIZES, State, in_hub_form, nanogpt_losses, nanogpt_state, save_nanogpt
from refusals import snapshot
from tiny import RUN, flags

from nanoscale.commands.main import dispatch
from nanoscale.data.dataset import evaluation_windows, open_dataset, windows
from nanoscale.data.meta import read_meta
from nanoscale.data.tokenizer import Characters
from nanoscale.errors import UserError, exit_code_of
from nanoscale.experiments.cells import make_cells
from nanoscale.model.init_from import described, pretrained, weights_of
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.sources import Source, build
from nanoscale.spec.weights import dictated
from nanoscale.store.files import read_json
from nanoscale.store.folder import RunFolder, run_spec
from nanoscale.training import checkpoint
from nanoscale.training.run import evaluate, train

OF_MODEL = ("n_layer", "n_head", "n_embd", "block_size", "min_lr_frac")
FREE = {key: value for key, value in RUN.items() if key not in OF_MODEL} | {"min_lr": 0.0}


def begin(init_from: str, out: str = "out", **values: Any):
    """Train what a user types: only `values` beside what has nothing to do with the weights."""
    typed = FREE | {"init_from": init_from, "max_iters": 0} | values
    return train(build([Source("test", typed)]), out, typed=typed)


@pytest.fixture
def nanogpt(desk) -> Path:
    """A folder that nanoGPT's train.py left."""
    return save_nanogpt(desk / "theirs" / "ckpt.pt", nanogpt_state()).parent


# -- nanoGPT's ------------------------------------------------------------------------------------
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block_size", [8, 5])
def test_a_checkpoint_of_nanogpt_evaluates_to_its_own_loss(desk, bias, block_size):
    state = nanogpt_state(bias)
    save_nanogpt(desk / "theirs" / "ckpt.pt", state)
    typed = {} if block_size == 8 else {"block_size": block_size}
    result = begin("theirs", **typed)

    tokens = open_dataset("tiny").tokens["val"]
    starts = evaluation_windows(len(tokens), block_size, 160 // block_size)
    X, Y = map(torch.from_numpy, windows(tokens, starts, block_size))
    losses = nanogpt_losses(state, X, Y).mean(dim=1)
    assert np.load(desk / "out" / "windows.npy") == pytest.approx(losses.numpy(), rel=1e-5)
    assert result.status == "COMPLETE"
    assert evaluate(build([Source("t", FREE | {"init_from": "theirs/ckpt.pt"} | typed)])) == (
        pytest.approx(losses.mean().item(), rel=1e-5)
    )


def test_what_torch_compile_and_old_masks_add_to_a_checkpoint_changes_nothing(nanogpt, desk):
    state = nanogpt_state()
    added = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    added |= {f"_orig_mod.transformer.h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(2)}
    save_nanogpt(desk / "compiled.pt", added)
    first, second = pretrained("theirs"), pretrained("compiled.pt")
    assert second.digest == first.digest
    assert second.keys == first.keys
    assert first.dataset == "tiny"
    assert {key: first.keys[key] for key in SIZES} == SIZES


def test_a_head_of_its_own_is_kept(desk):
    state = nanogpt_state()
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    save_nanogpt(desk / "untied.pt", state)
    assert pretrained("untied.pt").keys["tie_embeddings"] is False
    assert torch.equal(pretrained("untied.pt").tensors["lm_head.weight"], state["lm_head.weight"])


def test_a_folder_of_hugging_faces_form_is_the_same_weights(nanogpt, desk):
    in_hub_form(desk / "hub", nanogpt_state())
    assert pretrained("hub").digest == pretrained("theirs").digest
    assert begin("hub", "one").val_loss == begin("theirs", "two").val_loss
    assert RunFolder("one").spec().id == RunFolder("two").spec().id
    assert "tanh" in (desk / "one" / "log.txt").read_text()  # how OpenAI's GELU is computed


def test_a_folder_of_nanogpts_is_no_run_to_resume_and_the_remedy_is_named(nanogpt):
    with pytest.raises(UserError, match=r"another program; --init_from=theirs begins with nanoGPT"):
        begin("resume", "theirs", block_size=8)


def test_weights_whose_tokens_nobody_names_are_asked_about(nanogpt, desk, capsys):
    begin("theirs")
    said = "warning: the weights know 24 tokens, the dataset has 16; are its tokens theirs?"
    assert said in capsys.readouterr().out
    in_hub_form(desk / "hub", nanogpt_state())
    assert nanoscale("eval", "hub", "--data=tiny", "--tokens=160", "--device=cpu") == 0
    assert said in capsys.readouterr().err


def reversed_symbols(desk: Path) -> list[str]:
    """A data set `other` of as many symbols as the tiny one, which stand for other characters."""
    shutil.copytree(desk / "data" / "tiny", desk / "data" / "other")
    meta = read_meta(desk / "data" / "tiny")
    symbols = list(meta.itos or ())
    turned = {"vocab_size": len(symbols), "itos": dict(enumerate(reversed(symbols)))}
    (desk / "data" / "other" / "meta.pkl").write_bytes(pickle.dumps(turned))
    return symbols


def test_weights_of_other_tokens_are_refused_and_how_to_make_theirs_is_told(nanogpt, desk, capsys):
    symbols = reversed_symbols(desk)
    in_hub_form(desk / "hub", nanogpt_state())
    (desk / "hub" / "tokenizer.json").write_text(Characters(symbols).to_json())
    begin("theirs", "ours", dataset="tiny")
    capsys.readouterr()
    exported = "HF/tokenizer.json after `nanoscale export {} HF`"
    for source, kind, choice in (
        ("theirs", "char", exported.format("theirs")),
        ("ours", "char", exported.format("ours")),
        ("hub", "tokenizer.json", "hub/tokenizer.json"),
    ):
        said = (
            f"error: init_from={source}: the tokens of its weights ({kind}, 16 tokens) are not "
            "those of dataset 'other' (char, 16 tokens); prepare its text with theirs: "
            f"--tokenizer {choice}\n"
        )
        typed = flags(FREE | {"dataset": "other", "init_from": source, "out_dir": "new"})
        assert nanoscale("train", *typed) == 2
        assert capsys.readouterr().err == said
        if source == "hub":
            assert nanoscale("eval", source, "--data=other") == 2
            assert capsys.readouterr().err == said
        with pytest.raises(UserError, match="are not those of dataset 'other'"):
            run_spec(ExperimentConfig(), open_dataset("other"), {}, weights_of(source))
    assert begin("hub", "same", dataset="tiny").status == "COMPLETE"  # of characters, too
    assert not (desk / "new").exists()

    np.arange(16, dtype="<u2").tofile(desk / "data" / "tiny" / "train.bin")
    assert weights_of("ours").tokens is not None  # read before its data changed
    os.utime("ours/ckpt.pt", (1, 1))
    assert weights_of("ours").tokens is None


def test_gpt2s_tokens_are_known_by_the_size_of_its_table(nanogpt):
    found = pretrained("theirs")
    for size, known in ((50257, True), (50304, True), (50258, False)):
        sized = replace(found, keys={**found.keys, "vocab_size": size}, dataset=None)
        tokens = described(sized, "theirs").tokens
        assert (tokens is not None and tokens.choice == "gpt2") == known


# -- our own --------------------------------------------------------------------------------------
PARTS = {"parametrization.mode": "CompleteP", "parametrization.alpha": 0.7, "use_rope": True}


def test_a_run_begins_with_the_weights_of_another_under_its_parametrization(desk):
    first = train(build([Source("test", RUN | PARTS | {"max_iters": 4})]), "first")
    again = begin("first", "again")
    assert again.val_loss == first.val_loss
    config = RunFolder("again").spec().config
    assert dictated(config) == dictated(RunFolder("first").spec().config)
    third = begin("again", "third", block_size=4)  # of a folder that has made no updates
    assert third.val_loss != first.val_loss
    assert RunFolder("third").spec().config.block_size == 4
    assert RunFolder("fourth").exists() is False
    longer = begin("first", "longer", block_size=16)  # positions are not learned
    assert longer.status == "COMPLETE"


@pytest.mark.parametrize(
    ("keep", "left"), [("all", "ckpt.pt"), ("best", "best.pt"), ("none", None)]
)
def test_no_updates_leave_the_weights_as_they_came(nanogpt, keep, left):
    folder = begin("theirs", keep=keep).folder
    weights = sorted(path.name for path in folder.path.glob("*.pt"))
    assert weights == ([left] if left else [])
    if left:
        assert pretrained("out").digest == pretrained("theirs").digest
        content = checkpoint.load(folder / left)["model"]
        assert torch.equal(content["transformer.wte.weight"], nanogpt_state()["lm_head.weight"])


def test_a_best_checkpoint_is_preferred_as_a_sample_does(nanogpt, desk):
    folder = begin("theirs", "ours", max_iters=2, eval_interval=1, learning_rate=1e-3).folder
    assert sorted(path.name for path in folder.path.glob("*.pt")) == ["best.pt", "ckpt.pt"]
    best = checkpoint.load(folder / "best.pt")["model"]
    best["transformer.ln_f.weight"] += 1
    content = checkpoint.load(folder / "best.pt") | {"model": best}
    checkpoint.save(folder / "best.pt", content.pop("spec"), **content)
    assert torch.equal(
        pretrained("ours").tensors["transformer.ln_f.weight"], best["transformer.ln_f.weight"]
    )


# -- identity -------------------------------------------------------------------------------------
def test_the_digest_of_the_tensors_is_part_of_the_runs_name(nanogpt, desk):
    spec = begin("theirs", "one").folder.spec()
    record = read_json(desk / "one" / "config.json")
    assert record["weights"]["sha256"] == pretrained("theirs").digest == spec.content["weights"]
    assert record["weights"]["init_from"] == "theirs"
    assert record["weights"]["keys"]["n_embd"] == 16
    assert RunFolder("one").spec() == spec

    shutil.copytree("theirs", "elsewhere")
    same = begin("elsewhere/ckpt.pt", "two", init_seed=5, init_std=0.5).folder.spec()
    assert same.id == spec.id  # neither the path nor what draws initial values counts
    save_nanogpt(desk / "elsewhere" / "ckpt.pt", nanogpt_state(seed=1))
    assert begin("elsewhere", "two").folder.spec().id != spec.id


def test_a_run_that_goes_on_needs_the_source_no_more(nanogpt, desk, capsys):
    whole = begin("theirs", "whole", max_iters=4)
    begin("theirs", "ours", max_iters=4, lr_schedule="constant")
    first = begin("theirs", "parts", max_iters=2, lr_decay_iters=4)
    shutil.rmtree("theirs")
    capsys.readouterr()
    assert begin("theirs", "parts", max_iters=2, lr_decay_iters=4).val_loss == first.val_loss
    assert nanoscale("train", "--init_from=resume", "--out_dir=parts", "--dataset=gone") == 2
    said = "init_from=resume: the run in parts is of dataset 'tiny': give the config"
    assert said in capsys.readouterr().err
    longer = begin("resume", "parts", max_iters=4)
    assert longer.val_loss == whole.val_loss
    assert longer.folder.spec().content == whole.folder.spec().content
    again = begin("theirs", "parts", max_iters=4)
    assert "is COMPLETE already" in capsys.readouterr().out
    assert again.val_loss == whole.val_loss
    with pytest.raises(
        UserError, match="n_layer=3: the weights of init_from=theirs have n_layer=2"
    ):
        begin("resume", "parts", max_iters=5, n_layer=3)
    with pytest.raises(UserError, match="init_from=theirs: no such file or folder"):
        begin("theirs", "new")
    assert not (desk / "new").exists()


def test_a_changed_source_is_another_run_and_is_told(nanogpt, desk, capsys):
    begin("theirs", "ours", max_iters=2)
    save_nanogpt(desk / "theirs" / "ckpt.pt", nanogpt_state(seed=1))
    capsys.readouterr()
    begin("theirs", "ours", max_iters=2)
    assert "the weights it begins with were theirs (" in capsys.readouterr().out
    assert (desk / "ours.old-1").is_dir()

    unbegun = begin("theirs", "unbegun").folder  # made and not begun, when the source changes
    for name in ("ckpt.pt", "status.json", "metrics.json"):
        (unbegun / name).unlink()
    save_nanogpt(desk / "theirs" / "ckpt.pt", nanogpt_state(seed=2))
    assert nanoscale("run", "unbegun") == 2
    assert "its weights have changed since this run was made" in capsys.readouterr().err


def test_a_branch_needs_the_same_beginning(nanogpt):
    begin("theirs", "parent", max_iters=4, checkpoint_steps=[2], lr_schedule="constant")
    child = {"max_iters": 3, "branch_from": "parent@2", "lr_schedule": "constant"}
    assert begin("theirs", "child", **child).status == "COMPLETE"
    with pytest.raises(
        UserError, match=r"began with init_from=theirs \(\w+\), this one would .*=scratch; a branch"
    ):
        begin("scratch", "other", **child, n_layer=2, n_head=2, n_embd=16, block_size=8)


def test_cells_begin_with_weights_and_take_their_sizes(nanogpt):
    base = Source("base", FREE | {"init_from": "theirs", "max_iters": 2})
    cells = make_cells(
        {}, [base], [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}], "grid_params"
    )
    assert {cell.spec.weights.digest for cell in cells} == {weights_of("theirs").digest}
    assert [cell.config.n_embd for cell in cells] == [16, 16]
    with pytest.raises(
        UserError,
        match=r"n_embd=32 \(grid_params\): the weights of init_from=theirs have n_embd=16",
    ):
        make_cells({}, [base], [{"n_embd": 32}], "grid_params")


# -- what is refused ------------------------------------------------------------------------------
class Payload:
    """Code in a pickle."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def spoil(desk: Path) -> None:
    """Folders and files that are no weights, or not whole."""
    whole = (desk / "theirs" / "ckpt.pt").read_bytes()
    state = nanogpt_state()
    (desk / "code.pt").write_bytes(pickle.dumps({"model_args": Payload()}))
    torch.save({"model_args": SIZES, "model": state, "x": Payload()}, desk / "zipped_code.pt")
    (desk / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (desk / "text.pt").write_text("weights")
    torch.save({"state_dict": state}, desk / "other.pt")
    torch.save({"model_args": SIZES, "model": {1: 2}}, desk / "odd.pt")
    torch.save({"model_args": [], "model": state}, desk / "listed.pt")
    torch.save({"model_args": {"n_layer": 2}, "model": state}, desk / "unsized.pt")
    save_nanogpt(desk / "heads.pt", state, n_head=3)
    save_nanogpt(desk / "deeper.pt", state, n_layer=3)
    save_nanogpt(desk / "wider.pt", state, n_embd=32)
    save_nanogpt(desk / "huge.pt", state, n_layer=10**9)
    first = next(iter(state))
    save_nanogpt(desk / "nan.pt", state | {first: state[first] * float("nan")})
    save_nanogpt(desk / "scalar.pt", state | {first: torch.tensor(1.0)})
    save_nanogpt(desk / "whole_numbers.pt", state | {first: state[first].long()})
    save_nanogpt(desk / "complex.pt", state | {first: state[first].to(torch.complex64)})
    save_nanogpt(desk / "sparse.pt", state | {first: state[first].to_sparse()})
    save_nanogpt(desk / "meta.pt", state | {first: state[first].to("meta")})
    save_nanogpt(desk / "twice.pt", state | {f"_orig_mod.{first}": state[first] + 1})
    small = nanogpt_state(vocab_size=11)
    save_nanogpt(desk / "small.pt", small, vocab_size=11)
    flipped = bytearray(whole)
    flipped[flipped.index(state["transformer.wpe.weight"].numpy().tobytes()) + 9] ^= 1
    (desk / "flipped.pt").write_bytes(flipped)
    for name in ("whole", "halved", "coded", "pickled", "second", "elsewhere"):
        in_hub_form(desk / name, state)
    shutil.copy("whole/model.safetensors", "second/extra.safetensors")
    index = {"weight_map": {"wte.weight": "../whole/model.safetensors"}}
    (desk / "elsewhere" / "model.safetensors").unlink()
    (desk / "elsewhere" / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = desk / "halved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    config = desk / "coded" / "config.json"
    record = json.loads(config.read_text())
    config.write_text(json.dumps(record | {"auto_map": {"AutoConfig": "code.Config"}}))
    (desk / "coded" / "code.py").write_text("import os; os.mkdir('executed')")
    (desk / "pickled" / "model.safetensors").rename(desk / "pickled" / "pytorch_model.bin")
    (desk / "deep.py").write_text("n_layer = 3\nn_head = 4\n")
    (desk / "nothing").mkdir()
    (desk / "begun").mkdir()
    (desk / "begun" / "config.json").write_text('{"id": "0", "config": {}}')


BAD = {
    "code.pt": "it may hold code: none was run",
    "zipped_code.pt": "it may hold code: none was run",
    "cut.pt": "not a readable checkpoint, truncated or foreign",
    "text.pt": "not a readable checkpoint, truncated or foreign",
    "other.pt": "neither a checkpoint of nanoscale nor of nanoGPT",
    "odd.pt": "holds 1, which is no tensor by a name",
    "listed.pt": "holds no model_args and model",
    "unsized.pt": "its model_args have no n_head",
    "heads.pt": "its weights make no model: n_embd=16 is not divisible by n_head=3",
    "deeper.pt": "transformer.h.2.attn.c_k.bias is missing there",
    "wider.pt": "(16,) there, and its config says (32,)",
    "huge.pt": "1000000000 blocks, more than it holds tensors",
    "nan.pt": "is not finite: its run has diverged",
    "scalar.pt": "is no array of floats",
    "whole_numbers.pt": "is no array of floats",
    "complex.pt": "is no array of floats",
    "sparse.pt": "is no array of floats",
    "meta.pt": "is no array of floats",
    "flipped.pt": "damaged (ckpt/data/1 does not match its checksum); copy it again",
    "second": "extra.safetensors, model.safetensors, and no model.safetensors.index.json",
    "elsewhere": "'../whole/model.safetensors' is not there",
    "twice.pt": "holds a tensor twice, under two names",
    "small.pt": "init_from=small.pt: its weights' vocab_size=11 is below the 16 symbols",
    "halved": "not a whole safetensors file",
    "coded": "the model wants remote code (auto_map); none was run",
    "pickled": "a pickle may hold code, so it is not read",
    "whole --n_embd=32": "the weights of init_from=whole have n_embd=16",
    "whole --block_size=9": "block_size=9: the weights of init_from=whole have block_size=8",
    "nothing": "init_from=nothing: holds no weights; a run folder",
    "begun": "the run there has saved no weights yet",
    "nowhere/at/all": "init_from=nowhere/at/all: no such file or folder",
    "scrach": "did you mean 'scratch'?",
    "their": "did you mean 'theirs'?",
    "gpt2-xxl": "did you mean 'gpt2-xl'?",
    "theirs --n_embd=32": "the weights of init_from=theirs have n_embd=16; leave n_embd out",
    "theirs deep.py --n_embd=32": (
        "n_layer=3 (deep.py), n_head=4 (deep.py), n_embd=32: the weights of init_from=theirs have "
        "n_layer=2, n_head=2, n_embd=16; leave n_layer, n_head, n_embd out"
    ),
    "theirs --out_dir=theirs": "init_from=theirs is in out_dir=theirs itself: go on",
    "theirs/ckpt.pt --out_dir=theirs": "init_from=theirs/ckpt.pt is in out_dir=theirs itself",
    "theirs --n_head=5": "n_head=5: the weights of init_from=theirs have n_head=2",
    "theirs --block_size=16": "block_size=16: the weights of init_from=theirs have block_size=8",
    "theirs --vocab_size=32": "vocab_size=32: the weights of init_from=theirs have vocab_size=24",
    "theirs --bias=False": "bias=False: the weights of init_from=theirs have bias=True",
    "theirs --tie_embeddings=False": "have tie_embeddings=True",
    "theirs --parametrization.mode=muP": "have parametrization.mode=SP",
    "": "init_from is empty",
}


def nanoscale(*arguments: str) -> int:
    return exit_code_of(lambda: dispatch(list(arguments)))


def test_bad_weights_are_one_line_and_leave_nothing(nanogpt, desk, capsys):
    spoil(desk)
    before = snapshot(desk)
    for words, said in BAD.items():
        source, *more = words.split(" ")
        assert nanoscale("train", *flags(FREE), f"--init_from={source}", *more) == 2, words
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        assert said in err, words
    assert snapshot(desk) == before


def test_typed_keys_that_agree_and_what_the_weights_leave_open_are_taken(nanogpt):
    config = begin("theirs", n_embd=16, bias=True, dropout=0.1, z_loss=1e-4).folder.spec().config
    assert (config.dropout, config.z_loss, config.vocab_size, config.bias) == (0.1, 1e-4, 24, True)


def test_weights_that_nobody_names_change_no_run():
    config = ExperimentConfig(init_from="gpt2", n_head=5)
    with pytest.raises(UserError, match="not divisible"):
        replace(config, init_from="scratch")


# -- samples --------------------------------------------------------------------------------------
GREEDY = ["--num_samples=1", "--max_new_tokens=6", "--temperature=0", "--device=cpu"]


def greedy(state: State, ids: list[int], count: int, symbols: int) -> list[int]:
    """The likeliest continuation by nanoGPT's model, which sees the last block_size tokens."""
    ids = list(ids)
    for _ in range(count):
        X = torch.tensor([ids[-SIZES["block_size"] :]])
        losses = [
            nanogpt_losses(state, X, torch.full_like(X, token))[0, -1] for token in range(symbols)
        ]
        ids.append(int(torch.stack(losses).argmin()))
    return ids


@pytest.mark.parametrize("named", ["--out_dir=theirs", "--init_from=theirs/ckpt.pt"])
def test_nanogpts_folder_samples_by_the_meta_of_its_dataset(nanogpt, capsys, named):
    data = open_dataset("tiny")
    wanted = greedy(nanogpt_state(), data.encode("the c"), 6, data.vocab_size)
    assert nanoscale("sample", named, "--start=the c", *GREEDY) == 0
    assert capsys.readouterr().out == f"{data.decode(wanted)}\n---------------\n"


def test_an_imported_run_samples_as_its_source(nanogpt, capsys):
    assert nanoscale("sample", "--out_dir=theirs", "--start=the c", *GREEDY) == 0
    before = capsys.readouterr().out
    begin("theirs", "ours")
    capsys.readouterr()
    for named in ("--out_dir=ours", "--init_from=ours", "--init_from=ours/ckpt.pt"):
        assert nanoscale("sample", named, "--start=the c", *GREEDY) == 0
        assert capsys.readouterr().out == before


def test_nanogpts_folder_is_exported_and_told_by_its_own_name(nanogpt, desk, capsys):
    state = nanogpt_state(bias=False)
    save_nanogpt(desk / "theirs" / "ckpt.pt", state)
    assert nanoscale("export", "theirs", "hf") == 0
    out = capsys.readouterr().out
    assert "of run theirs at step 3 (ckpt.pt)" in out
    assert out.endswith(
        "what it has more parameters than the run are zeros and copies: imported again it has "
        "bias=True, as every GPT2LMHeadModel does\n"
    )
    found = pretrained("hf")
    assert torch.equal(found.tensors["transformer.ln_f.weight"], state["transformer.ln_f.weight"])
    assert not found.tensors["transformer.ln_f.bias"].any()
    again = ["--init_from=hf", "--start=the c", *GREEDY, "--json=o.json"]
    assert nanoscale("sample", *again) == 0
    texts = [capsys.readouterr().out.partition("\n---")[0]]
    assert read_json(Path("o.json")) == {"init_from": "hf", "samples": texts}
    assert nanoscale("sample", "--init_from=hf", "--start=the X") == 2
    assert "hf/tokenizer.json has no symbol for 'X'" in capsys.readouterr().err


def test_tokens_that_nobody_explains_are_refused(nanogpt, desk, capsys):
    save_nanogpt(desk / "theirs" / "ckpt.pt", nanogpt_state(), dataset="elsewhere")
    assert nanoscale("sample", "--out_dir=theirs", "--start=the") == 2
    said = "theirs: nothing says what its 24 tokens mean; no meta of dataset 'elsewhere' is here"
    assert said in capsys.readouterr().err
    small = nanogpt_state(vocab_size=3)
    save_nanogpt(desk / "small" / "ckpt.pt", small, vocab_size=3)
    assert nanoscale("sample", "--out_dir=small", "--start=the") == 2
    assert "is beyond the 3 that the weights know" in capsys.readouterr().err
