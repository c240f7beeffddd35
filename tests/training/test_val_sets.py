"""Several validation sets: each evaluated, told apart in records, part of the run's name."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
from tiny import RUN, spec_maker

from nanoscale.data.dataset import open_dataset
from nanoscale.errors import UserError
from nanoscale.experiments.records import RunEntry
from nanoscale.experiments.results import mixed_sets, row_of
from nanoscale.model.distributed import Ranks
from nanoscale.store.resume import open_folder, past_difference
from nanoscale.training.evaluation import window_losses
from nanoscale.training.run import train_folder
from nanoscale.training.sample import data_of
from nanoscale.training.state import build, dataset_of

KEYS = {**RUN, "max_iters": 4, "eval_interval": 2, "lr_schedule": "constant"}


@pytest.fixture
def root(desk):
    """Below it the data set `tiny`, with a second file, and `other`, of the same symbols."""
    root = desk / "data"
    tokens = np.fromfile(root / "tiny/val.bin", "<u2")
    tokens[::-1].tofile(root / "tiny/val_back.bin")
    shutil.copytree(root / "tiny", root / "other")
    (root / "other/val_back.bin").unlink()
    np.sort(tokens).tofile(root / "other/val.bin")
    return root


def sets(root, *names):
    return open_dataset("tiny", str(root), names)


def test_all_files_of_a_folder_are_its_sets_val_first(root):
    found = sets(root)
    assert found.val_sets == ("val", "back")
    assert (found.tokens["back"] == found.tokens["val"][::-1]).all()
    assert found.bytes_per_token("back") == found.bytes_per_token("val") == 1


def test_sets_are_named_in_their_order(root):
    assert sets(root, "back", "val").val_sets == ("back", "val")
    assert sets(root, "val", str(root / "other")).val_sets == ("val", "other")
    assert sets(root, "other").tokens["other"].tolist() == sorted(sets(root).tokens["val"])


def test_what_is_measured_names_the_data_and_val_alone_is_as_before(root):
    alone = sets(root, "val").fingerprint
    (root / "tiny/val_back.bin").rename(root / "back.bin")
    assert sets(root).fingerprint == alone
    (root / "back.bin").rename(root / "tiny/val_back.bin")
    named = [
        sets(root, *names).fingerprint for names in (("val", "back"), ("back", "val"), ("back",))
    ]
    assert len({alone, *named}) == 4
    assert sets(root).fingerprint == named[0]
    other = np.fromfile(root / "tiny/val_back.bin", "<u2")
    other[5] = other[5] == 0
    other.tofile(root / "tiny/val_back.bin")
    assert sets(root).fingerprint != named[0]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["vall"], "none of tiny's (val, back), and there is no such dataset in"),
        (["vall"], "did you mean 'val'?"),
        (["val", "val"], "a name of its own"),
        (["back", "other/back"], "a name of its own"),
        (["train"], "a name of its own"),
    ],
)
def test_a_set_that_cannot_be_is_one_line(root, names, words):
    with pytest.raises(UserError, match="validation set") as caught:
        sets(root, *names)
    assert words in str(caught.value)


def test_tokens_that_mean_other_text_are_refused(root):
    meta = pickle.loads((root / "other/meta.pkl").read_bytes())
    meta["itos"][0], meta["itos"][1] = meta["itos"][1], meta["itos"][0]
    (root / "other/meta.pkl").write_bytes(pickle.dumps(meta))
    with pytest.raises(UserError, match="same tokenizer"):
        sets(root, "val", "other")


def test_symbols_are_known_without_a_further_set(root):
    spec = spec_maker(KEYS, root)()
    (root / "tiny/val_back.bin").unlink()
    assert data_of(spec).encode("the") == sets(root).encode("the")
    with pytest.raises(UserError, match=r"'back' is none of tiny's \(val\)"):
        dataset_of(spec)
    (root / "tiny/val.bin").unlink()
    with pytest.raises(UserError, match=r"val\.bin is missing"):
        data_of(spec)


def test_a_foreign_token_or_a_short_file_is_refused(root):
    np.array([999] * 50, "<u2").tofile(root / "tiny/val_back.bin")
    with pytest.raises(UserError, match=r"val_back\.bin holds token 999"):
        sets(root)
    np.array([1, 2], "<u2").tofile(root / "tiny/val_back.bin")
    with pytest.raises(UserError, match=r"val_back\.bin holds 2 tokens"):
        sets(root).require_block(8)


def test_a_run_evaluates_each_and_studies_fit_the_first(root):
    spec = spec_maker(KEYS, root)(val_sets=("back", "val"))
    folder = open_folder(root / "run", spec, resume=False)
    result = train_folder(folder)
    alone = train_folder(
        open_folder(root / "alone", spec_maker(KEYS, root)(val_sets=("val",)), False)
    )

    assert list(result.val_sets) == ["back", "val"]
    assert result.val_loss == result.val_sets["back"]["loss"] != alone.val_loss
    assert result.val_sets["val"]["loss"] == alone.val_loss
    assert result.val_sets["val"]["bits_per_byte"] == alone.val_bits_per_byte
    assert result.val_set == folder.metrics()["val_set"] == "back"
    assert not {"val_set", "val_sets"} & alone.folder.metrics().keys()
    assert mixed_sets([folder, alone.folder]) == [
        "the runs are judged by 2 different validation sets (back of tiny, val of tiny): their "
        "losses do not rank them (bits per byte do where the text is the same)"
    ]
    assert mixed_sets([folder, folder]) == []
    assert folder.spec().parts == spec.parts  # of config.json
    for row, lone in zip(folder.rows(), alone.folder.rows(), strict=True):
        assert row.get("val_loss_val") == lone["val_loss"]
        assert row["train_loss"] == lone["train_loss"]
    row = row_of(RunEntry(spec.id, "run", {}, flops=0), folder)
    assert row["val_loss"] == result.val_loss
    assert row["val_loss_val"] == alone.val_loss
    assert "val_loss_back" not in row

    run = build(spec, dataset_of(spec), Ranks())
    windows = np.load(folder / "windows.npy")
    assert len(windows) == len(window_losses(run, "back", 10**6 // 8)[: len(windows)])


def test_a_run_goes_on_with_the_sets_that_it_began_with(root):
    spec = spec_maker(KEYS, root)()
    assert spec.config.val_sets == ("val", "back")
    folder = open_folder(root / "run", spec, resume=False)
    shutil.copy(root / "tiny/val.bin", root / "tiny/val_more.bin")
    assert list(train_folder(folder).val_sets) == ["val", "back"]
    assert spec_maker(KEYS, root)().id != spec.id


def test_a_lengthened_run_is_its_straight_twin(root):
    short = spec_maker(KEYS, root)(max_iters=3)
    train_folder(open_folder(root / "run", short, resume=False))
    long = spec_maker(KEYS, root)(max_iters=5)
    longer = train_folder(open_folder(root / "run", long, resume=True), long)
    straight = train_folder(open_folder(root / "straight", long, resume=False))
    keys = ("step", "val_loss", "val_loss_back", "train_loss")
    rows = [[row.get(key) for key in keys] for row in longer.folder.rows()]
    assert rows == [[row.get(key) for key in keys] for row in straight.folder.rows()]


def test_a_set_that_is_added_leaves_earlier_runs_as_they_are(root):
    added = root / "tiny/val_back.bin"
    added.rename(root / "back.bin")
    spec = spec_maker(KEYS, root)()
    folder = open_folder(root / "run", spec, resume=False)
    (root / "back.bin").rename(added)
    assert train_folder(folder).val_sets is None
    assert data_of(folder.spec()).val_sets == ("val",)
    more = spec_maker(KEYS, root)()
    assert past_difference(spec, more, 4) == (
        "the validation sets differ (val_sets=val, now val, back)"
    )
    with pytest.raises(UserError, match=r"\(--val_sets=val\)"):
        open_folder(root / "run", more, resume=True)


def test_a_run_whose_sets_are_others_is_moved_aside_and_can_go_on(root, capsys):
    make = spec_maker({**KEYS, "keep": "all"}, root)
    began = make()
    train_folder(open_folder(root / "run", began, resume=False))
    (root / "tiny/val_back.bin").rename(root / "back.bin")
    open_folder(root / "run", make(), resume=False)
    said = capsys.readouterr().out
    assert "the validation sets differ (val_sets=val, back, now val)" in said
    assert f"--val_sets=val,back --init_from=resume --out_dir={root}/run.old-1" in said

    shutil.copy(root / "other/val.bin", root / "tiny/val_back.bin")
    with pytest.raises(UserError, match="the tokens of the validation set back are others now"):
        open_folder(root / "run.old-1", make(), resume=True)
    with pytest.raises(UserError, match="the validation set back of dataset 'tiny' has changed"):
        dataset_of(began)
    (root / "back.bin").rename(root / "tiny/val_back.bin")
    assert open_folder(root / "run.old-1", make(val_sets=["val", "back"]), True).holds(began)
