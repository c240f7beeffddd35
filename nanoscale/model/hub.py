"""Models of the Hugging Face hub, kept in its own cache (HF_HOME)."""

from __future__ import annotations

import functools
from pathlib import Path

from nanoscale.errors import UserError

OF_OPENAI = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
# what is read of a model: its shape, its tensors, its tokenizer; nothing that runs
_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)


@functools.cache
def downloaded(name: str) -> Path:
    """The folder of a hub's model on this machine, brought here where it is not.

    Raises:
        UserError: no such model, no right to it, or no way to the hub.
    """
    try:
        from huggingface_hub import errors, snapshot_download  # type: ignore[import-not-found, unused-ignore]  # an extra
    except ImportError as e:
        raise UserError(
            f"init_from={name}: no such file or folder here, and the hub needs huggingface_hub: "
            "pip install 'nanoscale[hf]'"
        ) from e
    full = f"openai-community/{name}" if name in OF_OPENAI else name
    try:
        for repository in (name, full):  # either may be in the cache
            try:
                return Path(snapshot_download(repository, allow_patterns=list(_FILES)))
            except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
                if repository == full:
                    raise
    except errors.GatedRepoError as e:
        raise UserError(
            f"init_from={name}: the hub gives it to those who accepted its terms; accept them "
            "there and log in with `hf auth login`"
        ) from e
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as e:
        raise UserError(
            f"init_from={name}: no such file or folder here, and no model of that name on the hub"
        ) from e
    except Exception as e:  # whatever its HTTP client raises without a network
        raise UserError(
            f"init_from={name}: no such file or folder here, and the Hugging Face hub cannot be "
            f"reached ({type(e).__name__}); download it where there is a network, and name its "
            "folder"
        ) from e
    raise AssertionError("one of the two is returned or raises")
