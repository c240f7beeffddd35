"""The files of a data folder beside its tokens, and how a new set takes an old one's place."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanoscale.data.meta import (
    GPT2_VOCAB_SIZE,
    META_SCHEMA,
    SPLITS,
    Meta,
    dtype_of,
    other_tokens,
    read_meta,
)
from nanoscale.data.tokenizer import TOKENIZER_FILE, Bytes, Characters, Tokenizer, TokenizerFile
from nanoscale.errors import UserError

TRAIN = "train.bin"
OLD = "old.bin"  # what it was, in the stage


def write_meta(
    folder: Path,
    name: str,
    tokenizer: Tokenizer,
    splits: Mapping[str, Mapping[str, int | str]],
    facts: Mapping[str, object],
) -> None:
    """Write meta.json, nanoGPT's meta.pkl, and the tokenizer's own file if it has one."""
    _write_nanogpts(folder, tokenizer)
    ours = {
        "schema": META_SCHEMA,
        "dataset": name,
        **_described(tokenizer, folder),
        "splits": splits,
        **facts,
    }
    text = json.dumps(ours, indent=1) + "\n"
    (folder / "meta.json").write_text(text, encoding="utf-8", newline="\n")
    print(f"vocab size: {ours['vocab_size']:,}")
    for split in SPLITS:
        print(f"{split} has {splits[split]['tokens']:,} tokens")


def _described(tokenizer: Tokenizer, folder: Path) -> dict[str, object]:
    """What a meta.json says of its tokenizer, whose file, if it has one, is written to `folder`."""
    record: dict[str, object] = {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size}
    if isinstance(tokenizer, Characters):
        return record | {"itos": tokenizer.symbols}
    record["itos"] = None
    if isinstance(tokenizer, Bytes):
        return record
    record["dtype"] = dtype_of(tokenizer.vocab_size)
    if isinstance(tokenizer, TokenizerFile):
        (folder / TOKENIZER_FILE).write_bytes(tokenizer.content)
        sha256 = hashlib.sha256(tokenizer.content).hexdigest()
        end = tokenizer.end
        record["tokenizer"] = {"file": TOKENIZER_FILE, "sha256": sha256, "end": end}
    else:
        # what nanoGPT takes GPT-2's tokens for, so that the run is the same in its folder and ours
        record["vocab_size"] = GPT2_VOCAB_SIZE
    return record


def _write_nanogpts(folder: Path, tokenizer: Tokenizer) -> None:
    """nanoGPT's meta.pkl; without one it takes GPT-2's vocabulary."""
    if tokenizer.kind == "gpt2":
        return
    theirs: dict[str, object] = {"vocab_size": tokenizer.vocab_size}
    symbols: Sequence[str] | None = None
    if isinstance(tokenizer, Characters):
        symbols = tokenizer.symbols
    elif isinstance(tokenizer, Bytes):
        # nanoGPT joins strings, so for it a byte is the character of the same number
        symbols = [chr(byte) for byte in range(256)]
    if symbols is not None:
        theirs["itos"] = dict(enumerate(symbols))
        theirs["stoi"] = {symbol: number for number, symbol in enumerate(symbols)}
    (folder / "meta.pkl").write_bytes(pickle.dumps(theirs, protocol=4))


def replace_files(stage: Path, out: Path, overwrite: bool) -> bool:
    """Move the staged files that differ from those in `out` there; whether there were any.

    Raises:
        UserError: a file is there with other content, and not to `overwrite`; or a further
            validation set lies in `out`, whose tokens would be taken for other ones.
    """
    names = (TRAIN, "val.bin", TOKENIZER_FILE, "meta.pkl", "meta.json")
    staged = [name for name in names if (stage / name).exists()]
    same, _, _ = filecmp.cmpfiles(stage, out, staged, shallow=False)
    changed = [name for name in staged if name not in same]
    replaced = [name for name in changed if name != "meta.json" and (out / name).exists()]
    if not any((out / f"{split}.bin").exists() for split in SPLITS):
        replaced = [name for name in replaced if name == TOKENIZER_FILE]  # the user's own
    if "meta.json" not in changed:  # a file of another length than its meta says is damaged
        replaced = [name for name in replaced if _size(out / name) == _size(stage / name)]
    held = _held(out)
    new = read_meta(stage)
    if replaced and not overwrite:
        raise other_set(out, "", f"{_told(new)}, with another {replaced[0]}")
    _check_further(out, held, new)
    if not changed:
        return False
    if (out / TRAIN).exists():  # a set that is torn by a kill is one without it
        os.replace(out / TRAIN, stage / (OLD if TRAIN in changed else TRAIN))
    for name in changed:
        if name != TRAIN:
            os.replace(stage / name, out / name)
    if "meta.pkl" not in staged:
        # of another tokenizer, and nanoGPT would read it
        (out / "meta.pkl").unlink(missing_ok=True)
    if held is not None and held.tokenizer is not None and TOKENIZER_FILE not in staged:
        (out / held.tokenizer.file).unlink(missing_ok=True)
    os.replace(stage / TRAIN, out / TRAIN)
    return True


def _size(path: Path) -> int:
    return path.stat().st_size


def other_set(out: Path, source: str, new: str) -> UserError:
    """The refusal to replace the set in `out`, which is of `source`, by the new one."""
    held = _held(out)
    told = "files that nanoscale has not prepared"
    if held is not None and held.splits is not None:
        told = _told(held)
    of = f" of {source}" if source else ""
    return UserError(
        f"{out} holds {told}{of}, and this makes {new}; choose another folder with --out, or "
        "replace what is there with --overwrite"
    )


def _held(out: Path) -> Meta | None:
    """What the tokens in a folder mean; None where there are none, or no meta of use."""
    try:
        if (out / TRAIN).exists() or (out / "meta.json").exists():
            return read_meta(out)
    except UserError:
        pass
    return None


def _told(meta: Meta) -> str:
    assert meta.splits is not None
    train, val = (f"{meta.splits[split]['tokens']:,}" for split in SPLITS)
    symbols = f"{meta.kind}, {meta.vocab_size:,} symbols"
    return f"{meta.dataset} ({symbols}, {train} and {val} tokens)"


def _check_further(out: Path, held: Meta | None, new: Meta) -> None:
    """Refuse further validation sets of other tokens than the new ones, or of who knows which."""
    further = [path.name for path in sorted(out.glob("val_*.bin"))]
    if not further:
        return
    if held is None or held.dtype not in (None, new.dtype) or other_tokens(held, new):
        raise UserError(
            f"{out} holds {', '.join(further)}, of other tokens than this makes; move such files "
            "away first, and back only if they are of the new tokens"
        )
