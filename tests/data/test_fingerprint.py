"""Every byte of a token file is in the data's fingerprint."""

from __future__ import annotations

import numpy as np
import pytest

from nanoscale.data.dataset import open_dataset


@pytest.mark.parametrize("at", [0, 2**17, 2**18, 2**19 - 1, 2**19])
def test_any_token_of_a_block_changes_the_fingerprint(tmp_path, at):
    prints = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        tokens = np.zeros(2**19 + 1, "<u2")  # a whole block, and one token
        tokens[at] = name == "other"
        for split in ("train", "val"):
            tokens.tofile(tmp_path / name / f"{split}.bin")
        prints.append(open_dataset(name, str(tmp_path)).fingerprint)
    assert prints[0] != prints[1]
