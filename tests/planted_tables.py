"""Tables of runs that follow a planted law, as CSV files."""

from __future__ import annotations

import numpy as np

from nanoscale.laws import LAWS

TRUTH = np.array([1.69, 406.4, 410.7, 0.34, 0.28])


def rows(sd=0.002):
    """Columns of 24 runs of a planted law: four budgets, six sizes each."""
    law, C = LAWS["chinchilla"], np.repeat(np.geomspace(1e17, 1e20, 4), 6)
    n = law.optimum(TRUTH, C)[0] * np.tile(np.geomspace(0.25, 4, 6), 4)
    d = C / (6 * n)
    loss = law.loss(TRUTH, n, d) * np.exp(sd * np.random.default_rng(0).standard_normal(24))
    return {
        "total_params": n,
        "tokens_seen": d,
        "flops": C,
        "val_loss": loss,
        "run": [f"r{i // 2}" for i in range(24)],
    }


def write(path, columns, blank=()):
    """A CSV whose rows in `blank` have no loss."""
    lines = [",".join(columns)]
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        cells = [v if isinstance(v, str) else repr(float(v)) for v in row]
        if i in blank:
            cells[list(columns).index("val_loss")] = ""
        lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
