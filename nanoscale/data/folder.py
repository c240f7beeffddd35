"""The files of a data folder beside its tokens, and how a new set takes an old one's place."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanoscale.data.meta import GPT2_VOCAB_SIZE, META_SCHEMA, SPLITS, dtype_of
from nanoscale.data.tokenizer import TOKENIZER_FILE, Bytes, Characters, Tokenizer, TokenizerFile


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
    (folder / "meta.json").write_text(json.dumps(ours, indent=1) + "\n")
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


def replace_files(stage: Path, out: Path) -> bool:
    """Move the staged files that differ from those in `out` there; whether there were any."""
    # meta.json last: until it is there, the old one's token counts give a torn set away
    names = ("train.bin", "val.bin", TOKENIZER_FILE, "meta.pkl", "meta.json")
    staged = [name for name in names if (stage / name).exists()]
    same, _, _ = filecmp.cmpfiles(stage, out, staged, shallow=False)
    changed = [name for name in staged if name not in same]
    for name in changed:
        os.replace(stage / name, out / name)
    if "meta.pkl" not in staged:
        # of another tokenizer, and nanoGPT would read it
        (out / "meta.pkl").unlink(missing_ok=True)
    return bool(changed)
