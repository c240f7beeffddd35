"""The cases of `capture.py`: what is run, on tables and data sets made here or in the repository.

Everything is as small as it can be and still reach the code: nobody should read meaning into the
numbers, only whether they stay.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from capture import Case

VERBS = (
    "data",
    "train",
    "run",
    "sample",
    "export",
    "bench",
    "params",
    "study",
    "status",
    "watch",
    "retry",
    "table",
    "coord-check",
    "transfer",
    "compare",
    "design",
    "fit",
    "plan",
    "report",
    "doctor",
)

ONE_THREAD = "--threads=1"  # whose memory is the same on every machine


# -- tables -------------------------------------------------------------------------------------
def csv_of(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    lines = [",".join(rows[0]), *(",".join(str(v) for v in row.values()) for row in rows)]
    return "\n".join(lines) + "\n"


def planted(noise: float = 0.003) -> str:
    """A Chinchilla law over five sizes and five lengths, two runs each, with some noise."""
    draw = random.Random(1)
    rows = []
    for k, (n, d) in enumerate(
        itertools.product((1e6, 3e6, 1e7, 3e7, 1e8), (1e8, 3e8, 1e9, 3e9, 1e10))
    ):
        for seed in (1, 2):
            loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * (1 + noise * draw.gauss(0, 1))
            rows.append(
                {
                    "N": int(n),
                    "D": int(d),
                    "C": int(6 * n * d),
                    "seed": seed,
                    "cell": f"cell{k}",
                    "final": f"{loss:.6f}",
                }
            )
    return csv_of(rows)


def isoflops() -> str:
    """Four budgets, seven sizes each, as Approach 2 wants them."""
    draw, rows = random.Random(2), []
    for C in (1e17, 1e18, 1e19, 1e20):
        best = 0.1 * C**0.49
        for k in range(-3, 4):
            n = round(best * 2**k)
            d = round(C / 6 / n)
            loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * (1 + 0.001 * draw.gauss(0, 1))
            rows.append({"N": n, "D": d, "final": f"{loss:.6f}"})
    return csv_of(rows)


def repeated() -> str:
    """Repeated data: sizes, unique tokens and epochs."""
    draw, rows = random.Random(3), []
    for n, u, epochs in itertools.product((1e6, 1e7, 1e8), (1e7, 1e8, 1e9), (1, 4, 16)):
        seen = u * (1 + 8 * (1 - 2.718281828 ** (-(epochs - 1) / 8)))
        loss = (1.8 + 480 / n**0.35 + 2100 / seen**0.37) * (1 + 0.002 * draw.gauss(0, 1))
        rows.append({"N": int(n), "D": int(u * epochs), "U": int(u), "final": f"{loss:.6f}"})
    return csv_of(rows)


def valleys() -> str:
    """Two modes over three widths and seven learning rates: one whose optimum moves."""
    draw, rows = random.Random(4), []
    for mode, size, k, seed in itertools.product(
        ("SP", "muP"), (32, 64, 128, 256), range(7), (1, 2)
    ):
        lr = 1e-3 * 2.0**k
        best = 3 - 0.02 * k if mode == "muP" else 5 - (size.bit_length() - 6)
        loss = 2.6 - 0.1 * (size.bit_length() - 6) + 0.03 * (k - best) ** 2 + draw.gauss(0, 0.004)
        diverged = mode == "SP" and size == 256 and k == 6
        rows.append(
            {
                "mode": mode,
                "width": size,
                "lr": f"{lr:.6g}",
                "seed": seed,
                "final": "nan" if diverged else f"{loss:.6f}",
            }
        )
    return csv_of(rows)


PLAN = csv_of(
    {"N": n, "D": d}
    for n, d in itertools.product((10**7, 3 * 10**7, 10**8, 3 * 10**8), (10**9, 3 * 10**9, 10**10))
)
TABLES = {
    "nd.csv": planted(),
    "iso.csv": isoflops(),
    "rep.csv": repeated(),
    "lr.csv": valleys(),
    "plan.csv": PLAN,
    "ours.csv": "repo:docs/results/shakespeare/table.csv",
}
ND = ("--n=N", "--d=D", "--loss=final", "--bootstrap=100")


def with_tables(*names: str) -> dict[str, str | None]:
    return {name: TABLES[name] for name in names}


def fit_cases() -> Iterable[Case]:
    def fit(
        name: str,
        *options: str,
        table: str = "nd.csv",
        soak: bool = False,
        columns: Sequence[str] = ND,
    ) -> Case:
        return Case(
            f"fit-{name}",
            [("fit", table, *columns, *options, "--json=fit.json")],
            files=with_tables(table),
            soak=soak,
        )

    yield fit("chinchilla")
    yield fit(
        "columns-by-compute",
        columns=("--n", "N", "--c", "C", "--loss", "final", "--bootstrap", "100"),
    )
    yield fit("columns-without-n", columns=("--d=D", "--c=C", "--loss=final", "--bootstrap=100"))
    for objective in ("lad", "mse", "envelope"):
        yield fit(f"objective-{objective}", f"--objective={objective}")
    yield fit("delta-and-seed", "--delta=1e-2", "--seed=7", "--drop-worst=3")
    for method in ("cluster", "stratified"):
        yield fit(f"resample-{method}", f"--resample={method}", "--group=cell")
    for method in ("residual", "wild", "parametric"):
        yield fit(f"resample-{method}", f"--resample={method}")
    yield fit("without-resamples", columns=("--n=N", "--d=D", "--loss=final", "--bootstrap=0"))
    yield fit("holdout", "--holdout=1e18")
    yield fit("isoflop", "--isoflop", table="iso.csv")
    yield fit("isoflop-on-a-grid", "--isoflop")
    yield fit("influence", "--influence", "--group=cell")
    yield fit("profile", "--profile", soak=True)
    yield fit("multiverse", "--multiverse", table="iso.csv", soak=True)
    yield fit(
        "everything-drawn",
        "--isoflop",
        "--influence",
        "--holdout=1e19",
        "--figures=drawn",
        table="iso.csv",
        soak=True,
    )
    for law in ("kaplan", "kaplan-floor"):
        yield fit(law, f"--law={law}", soak=True)
    for law in ("repetition", "repetition-nd"):
        yield fit(law, f"--law={law}", "--u=U", table="rep.csv", soak=True)
    for law, table, more in (("kaplan", "nd.csv", ()), ("repetition", "rep.csv", ("--u=U",))):
        yield fit(
            f"{law}-alone",
            f"--law={law}",
            *more,
            table=table,
            columns=("--n=N", "--d=D", "--loss=final", "--bootstrap=0"),
        )
    power = ("--law=power", "--bootstrap=100")
    yield fit("power", "--c=flops", "--loss=val_loss", table="ours.csv", columns=power)
    yield fit("power-our-columns", table="ours.csv", columns=power)
    yield fit(
        "power-of-n-drawn",
        "--n=total_params",
        "--figures=drawn",
        table="ours.csv",
        columns=power,
        soak=True,
    )
    # without resamples: where nothing is pinned down, rounding decides their ends
    yield fit("not-identified", table="ours.csv", columns=("--law=chinchilla", "--bootstrap=0"))
    yield Case(
        "fit-json-lines", [("fit", "rows.jsonl", *ND)], files={"rows.jsonl": json_lines(planted())}
    )


def json_lines(table: str) -> str:
    head, *rows = (line.split(",") for line in table.splitlines())
    return "".join(
        json.dumps({k: v if k == "cell" else float(v) for k, v in zip(head, row, strict=True)})
        + "\n"
        for row in rows
    )


def reading_cases() -> Iterable[Case]:
    """plan, design and transfer: what is read from tables and fits."""
    yield Case(
        "plan",
        [
            ("plan", "nd.csv", *ND, "--budget=1e20", "--json=plan.json"),
            (
                "plan",
                "nd.csv",
                *ND,
                "--budget=1e19",
                "--tokens-per-second=1e5",
                "--vocab_size=256",
                "--block_size=256",
                "--batch-tokens=32768",
            ),
            ("fit", "nd.csv", *ND, "--json=fit.json"),
            ("plan", "fit.json", "--budget=3e18", "--flops-per-second=1e14", "--json=stored.json"),
            ("plan", "iso.csv", *ND, "--budget=1e14"),
        ],
        files=with_tables("nd.csv", "iso.csv"),
    )
    small = ("--worlds=50", "--bootstrap=100")
    yield Case(
        "design-power",
        [("design", "plan.csv", "--law=power", *small, "--json=design.json")],
        files=with_tables("plan.csv"),
    )
    yield Case(
        "design",
        [
            ("design", "plan.csv", *small, "--json=design.json"),
            (
                "design",
                "plan.csv",
                *small,
                "--noise=0.02",
                "--seeds=2",
                "--question=a;alpha;L@1e21",
                "--seed=3",
                "--extra=1e18",
            ),
        ],
        files=with_tables("plan.csv"),
        soak=True,
    )
    yield Case(
        "design-more",
        [
            ("fit", "nd.csv", *ND, "--json=fit.json"),
            (
                "design",
                "plan.csv",
                *small,
                "--truth=fit.json",
                "--resample=parametric",
                "--objective=lad",
                "--json=design.json",
            ),
            ("design", "ladder.toml", *small, "--json=ladder.json"),
        ],
        files=with_tables("nd.csv", "plan.csv") | {"ladder.toml": LADDER, "data/tiny": "tiny:"},
        soak=True,
    )
    lr = ("--size=width", "--lr=lr", "--loss=final", "--seed=seed")
    yield Case(
        "transfer-planted",
        [
            ("transfer", "lr.csv", *lr, "--by=mode", "--json=transfer.json"),
            (
                "transfer",
                "lr.csv",
                *lr,
                "--by=mode",
                "--only=muP",
                "--json=one.json",
                "--figure=one.png",
            ),
            (
                "transfer",
                "lr.csv",
                *lr,
                "--by=mode",
                "--only=SP",
                "--base=64",
                "--tolerance=3",
                "--max-shift=4",
                "--max-regret=0.5",
            ),
            ("transfer", "lr.csv", *lr),
        ],
        files=with_tables("lr.csv"),
    )
    for name in ("width_muon", "width_adamw", "depth_muon"):
        yield Case(
            f"transfer-{name}",
            [("transfer", f"{name}.csv", "--by=parametrization.mode", "--json=transfer.json")],
            files={f"{name}.csv": f"repo:docs/results/transfer/{name}.csv"},
            soak=name == "width_adamw",
        )


# -- configs ------------------------------------------------------------------------------------
def params_cases() -> Iterable[Case]:
    vocab = "--vocab_size=50304"
    yield Case(
        "params",
        [
            ("params", vocab, "--dtype=float32", ONE_THREAD),
            (
                "params",
                vocab,
                "--dtype=bfloat16",
                ONE_THREAD,
                "--use_rope=True",
                "--use_swiglu=True",
                "--use_rmsnorm=True",
                "--use_qk_norm=True",
                "--n_kv_head=4",
            ),
            (
                "params",
                "--vocab_size=65",
                "--parametrization.mode=muP",
                "--n_layer=4",
                "--n_head=8",
                "--n_embd=512",
                "--block_size=256",
                "--tie_embeddings=False",
                "--head_lr_mult=0.5",
                "--dtype=float32",
                ONE_THREAD,
            ),
            (
                "params",
                "--vocab_size=65",
                "--parametrization.mode=CompleteP",
                "--optimizer=muon",
                "--n_layer=16",
                "--n_head=4",
                "--n_embd=256",
                "--bias=True",
                "--parametrization.alpha=0.5",
                "--parametrization.base_batch_tokens=16384",
                "--parametrization.base_tokens=1000000",
                "--parametrization.wd_rule=sqrt",
                "--dtype=float32",
                ONE_THREAD,
                "--recompute=True",
                "--loss_chunk=1024",
            ),
            (
                "params",
                "c.py",
                "d.toml",
                "e.json",
                "f.yaml",
                "--dataset=tiny",
                "--dtype=float32",
                ONE_THREAD,
            ),
        ],
        files={
            "data/tiny": "tiny:",
            "c.py": "n_layer = 2\nn_head = n_layer * 2\nn_embd = 32\n",
            "d.toml": "block_size = 16\n[parametrization]\nmode = 'muP'\n",
            "e.json": '{"optimizer": "muon", "muon_scale": "original"}\n',
            "f.yaml": "max_tokens: 1e5\nwarmup_frac: 0.1\n",
        },
    )
    yield Case(
        "params-with-own-rules",
        [
            (
                "params",
                "--vocab_size=65",
                "--n_layer=2",
                "--n_head=2",
                "--n_embd=32",
                "--parametrization.rules=rules.py",
                "--parametrization.mode=muP-embed",
                "--dtype=float32",
                ONE_THREAD,
            )
        ],
        files={"rules.py": "repo:docs/howto/my_rules.py"},
    )


TINY = {
    "dataset": "tiny",
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 16,
    "block_size": 8,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_iters": 6,
    "warmup_iters": 0,
    "min_lr_frac": 0.1,
    "eval_interval": 3,
    "eval_iters": 2,
    "final_eval_tokens": 160,
    "device": "cpu",
    "compile": False,
    "dtype": "float32",
    "threads": 1,
}
DATA = {"data/tiny": "tiny:"}


def toml(values: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def study_file(name: str, recipe: str, base: Mapping[str, Any], rest: str) -> str:
    return (
        f'[study]\nname = "{name}"\nquestion = "Does {name} stay?"\nrecipe = "{recipe}"\n'
        f"[base]\n{toml(base)}{rest}"
    )


SHARED = {k: v for k, v in TINY.items() if k not in ("warmup_iters", "min_lr_frac")} | {
    "kernels": "torch"
}
LADDER = study_file(
    "ladder",
    "ladder",
    {k: v for k, v in SHARED.items() if k != "max_iters"}
    | {"tokens_per_param": 0.1, "eval_interval": 0},
    """
[ladder]
seeds = [1]
[[ladder.sizes]]
n_embd = 8
seeds = [1, 2]
[[ladder.sizes]]
n_embd = 16
[[ladder.sizes]]
n_embd = 24
seeds = [1, 2]
[[ladder.sizes]]
n_embd = 32
""",
)
GRID = study_file("grid", "grid", SHARED, "[grid]\nlearning_rate = [1e-3, 1e-2]\nseed = [1, 2]\n")
TRANSFER = study_file(
    "lrs",
    "transfer",
    SHARED | {"eval_interval": 0, "keep": "none"},
    """
[transfer]
size = "n_embd"
seeds = [1]
[[transfer.sizes]]
n_embd = 8
[[transfer.sizes]]
n_embd = 16
[[transfer.sizes]]
n_embd = 24
[[transfer.arms]]
name = "SP"
lrs = [1e-3, 4e-3, 1.6e-2, 6.4e-2, 2.56e-1]
[[transfer.arms]]
name = "muP"
parametrization.mode = "muP"
lrs = [1e-3, 4e-3, 1.6e-2, 6.4e-2, 2.56e-1]
""",
)
SEARCH = study_file(
    "search",
    "search",
    SHARED | {"eval_interval": 0},
    """
[search]
trials = 4
sampler = "random"
seed = 1
proxy = {n_layer = 1}
seeds = [1]
[search.space]
learning_rate = {low = 1e-4, high = 1e-1, log = true}
optimizer = ["adamw", "muon"]
""",
)
RUNGS = study_file(
    "rungs",
    "search",
    {k: v for k, v in SHARED.items() if k != "max_iters"} | {"max_iters": 8, "eval_interval": 0},
    """
[search]
trials = 12
sampler = "tpe"
rungs = [4, 8]
[search.space]
learning_rate = {low = 1e-4, high = 1e-1, log = true}
""",
)


def identity_cases() -> Iterable[Case]:
    """Names and ids of many configs: a budget of one FLOP makes the folders and trains nothing."""
    base = {k: v for k, v in SHARED.items() if k not in ("dtype", "n_layer")} | {"n_layer": 2}
    grids = {
        "model": (
            {},
            {
                "use_rope": [False, True],
                "use_rmsnorm": [False, True],
                "use_swiglu": [False, True],
                "n_kv_head": [2, 4],
            },
        ),
        "rules": (
            {},
            {
                "parametrization.mode": ["SP", "muP", "CompleteP"],
                "optimizer": ["adamw", "muon"],
                "dtype": ["auto", "bfloat16"],
            },
        ),
        "training": (
            {"n_head": 2},
            {
                "lr_schedule": ["cosine", "linear", "wsd", "constant"],
                "beta2_halflife_tokens": [1e4, 1e5],
                "weight_decay": [0.0, 0.1],
            },
        ),
        "lengths": (
            {"max_iters": None, "max_flops": 1e8},
            {"n_embd": [16, 32, 64], "init_seed": [1, 2]},
        ),
    }
    files = {
        f"{name}.toml": study_file(
            name,
            "grid",
            {k: v for k, v in (base | own).items() if v is not None},
            "[grid]\n" + toml({f'"{k}"' if "." in k else k: v for k, v in grid.items()}),
        )
        for name, (own, grid) in grids.items()
    }
    yield Case(
        "identities",
        [*(("study", f"{name}.toml", "--budget=1", "--workers=1") for name in grids), ("status",)],
        files=DATA | files,
        whole=False,
    )


# -- training -----------------------------------------------------------------------------------
def flags(**values: Any) -> tuple[str, ...]:
    return tuple(f"--{key}={value}" for key, value in (TINY | values).items())


def training_cases() -> Iterable[Case]:
    sample = ("sample", "--num_samples=2", "--max_new_tokens=12", "--seed=1")
    yield Case(
        "train",
        [
            ("train", *flags(out_dir="run", kernels="torch", stats_interval=3)),
            ("train", *flags(out_dir="run", kernels="torch", stats_interval=3)),
            ("run", "run"),
            (*sample, "--out_dir=run", "--start=the c"),
            (*sample, "--out_dir=run", "--temperature=0", "--use_cache=False"),
            ("train", *flags(out_dir="run", kernels="torch", eval_only=True)),
            ("train", *flags(out_dir="run", kernels="torch", n_layer=1)),
        ],
        kind="train",
        files=DATA,
    )
    yield Case(
        "train-fused",
        [
            (
                "train",
                *flags(
                    out_dir="run", kernels="fused", use_rope=True, use_swiglu=True, use_rmsnorm=True
                ),
            ),
            (*sample, "--out_dir=run", "--top_k=3"),
            ("export", "run", "hf"),
            ("export", "run", "hf"),
        ],
        kind="train",
        files=DATA,
    )
    yield Case(
        "train-longer-and-branches",
        [
            (
                "train",
                *flags(
                    out_dir="a",
                    lr_schedule="wsd",
                    max_iters=4,
                    checkpoint_steps="[2]",
                    cooldown_frac=0.25,
                    kernels="torch",
                ),
            ),
            (
                "train",
                *flags(
                    out_dir="a",
                    lr_schedule="constant",
                    max_iters=6,
                    init_from="resume",
                    kernels="torch",
                ),
            ),
            (
                "train",
                *flags(
                    out_dir="a",
                    lr_schedule="wsd",
                    max_iters=8,
                    cooldown_frac=0.25,
                    init_from="resume",
                    kernels="torch",
                    checkpoint_steps="[2]",
                ),
            ),
            (
                "train",
                *flags(
                    out_dir="b",
                    lr_schedule="wsd",
                    max_iters=4,
                    cooldown_frac=0.5,
                    branch_from="a@2",
                    kernels="torch",
                ),
            ),
        ],
        kind="train",
        files=DATA,
    )
    for name, dropped in (("train-muon", {}), ("train-dropout", {"dropout": 0.1})):
        yield Case(
            name,
            [
                (
                    "train",
                    *flags(
                        out_dir="run",
                        optimizer="muon",
                        kernels="torch",
                        tie_embeddings=False,
                        **dropped,
                        use_qk_norm=True,
                        z_loss=1e-4,
                        n_kv_head=2,
                        keep="best",
                        **{"parametrization.mode": "CompleteP"},
                    ),
                ),
            ],
            kind="train",
            files=DATA,
        )
    yield Case(
        "train-epochs-in-bfloat16",
        [
            (
                "train",
                *flags(
                    out_dir="run",
                    dtype="bfloat16",
                    kernels="torch",
                    data_order="epoch",
                    micro_batch_size=1,
                    recompute=True,
                    loss_chunk=5,
                    keep="none",
                    log_interval=2,
                ),
            ),
            (*sample, "--out_dir=run"),
        ],
        kind="train",
        files=DATA,
        soak=True,
    )
    yield Case(
        "train-diverges",
        [
            (
                "train",
                *flags(
                    out_dir="run",
                    learning_rate=1e30,
                    min_lr_frac=1.0,
                    grad_clip=0.0,
                    kernels="torch",
                    eval_interval=0,
                ),
            ),
            ("run", "run"),
        ],
        kind="train",
        files=DATA,
    )
    yield Case(
        "bench",
        [
            ("bench", *flags(kernels="torch")),
            ("bench", *flags(kernels="torch"), "--real_data=False"),
        ],
        kind="train",
        files=DATA,
        keys_only=True,
        soak=True,
    )


def study_cases() -> Iterable[Case]:
    one = ("--workers=1",)
    yield Case(
        "study-grid",
        [
            ("study", "grid.toml", "--dry-run", *one),
            ("study", "grid.toml", *one),
            ("study", "grid.toml", *one),
            ("status",),
            ("status", "grid"),
            ("table", "grid"),
            ("table", "grid", "--out=copy.csv"),
            ("report", "grid"),
            ("retry", "grid", *one),
            ("watch", "grid"),
            (
                "compare",
                "grid:learning_rate=0.001",
                "grid:learning_rate=0.01",
                "--json=compare.json",
                "--figure=compare.png",
            ),
            ("compare", "grid:seed=1", "grid:seed=2", "--loss=train_loss", "--rope=0.5"),
        ],
        kind="train",
        files=DATA | {"grid.toml": GRID},
        soak=True,
        whole=False,
    )
    yield Case(
        "study-dry",
        [
            ("study", f"{name}.toml", "--dry-run", *one, *more)
            for name, more in (
                ("ladder", ()),
                ("lrs", ("--budget=1e7",)),
                ("search", ()),
                ("rungs", ()),
            )
        ],
        files=DATA
        | {"ladder.toml": LADDER, "lrs.toml": TRANSFER, "search.toml": SEARCH, "rungs.toml": RUNGS},
    )
    yield Case(
        "study-ladder",
        [
            ("study", "ladder.toml", *one, "--output_root=out"),
            ("status", "ladder", "--output_root=out"),
            ("report", "ladder", "--output_root=out"),
            ("fit", "ladder", "--output_root=out", "--law=power", "--bootstrap=100"),
        ],
        kind="search",
        files=DATA | {"ladder.toml": LADDER},
        whole=False,
        soak=True,
    )
    yield Case(
        "study-transfer",
        [
            ("study", "lrs.toml", *one),
            ("report", "lrs"),
            ("transfer", "lrs", "--json=lrs.json"),
        ],
        kind="search",
        files=DATA | {"lrs.toml": TRANSFER[: TRANSFER.rindex("[[transfer.arms]]")]},
        whole=False,
        soak=True,
    )
    yield Case(
        "study-search",
        [
            ("study", "search.toml", *one),
            ("study", "search.toml", *one),
            ("report", "search"),
        ],
        kind="search",
        files=DATA | {"search.toml": SEARCH},
        whole=False,
        soak=True,
    )
    yield Case(
        "study-rungs",
        [("study", "rungs.toml", *one), ("status", "rungs")],
        kind="search",
        files=DATA | {"rungs.toml": RUNGS},
        whole=False,
        soak=True,
    )
    check = (
        "coord-check",
        "--dataset=tiny",
        "--n_layer=2",
        "--n_embd=16",
        "--n_head=4",
        "--block_size=8",
        "--batch_size=2",
        "--device=cpu",
        "--kernels=torch",
        "--steps=2",
        "--seeds=2",
        *one,
    )
    yield Case(
        "coord-check",
        [(*check, "--widths", "16,32,64", "--json=widths.json", "--figure=widths.png")],
        kind="search",
        files=DATA,
        whole=False,
        soak=True,
    )
    yield Case(
        "coord-check-depths",
        [(*check, "--depths=1,2,4", "--parametrization.mode=CompleteP", "--json", "depths.json")],
        kind="search",
        files=DATA,
        whole=False,
        soak=True,
    )


TEXT = "To be, or not to be: that is the question.\n" * 20
MIXED = "Gr\u00fc\u00dfe, \u4e16\u754c! na\u00efve caf\u00e9 \u2014 \U0001f600\n" * 20


def data_cases() -> Iterable[Case]:
    yield Case(
        "data-prepare",
        [
            ("data", "prepare", "text", "--input=a.txt"),
            ("data", "prepare", "text", "--input", "a.txt", "--kind=byte", "--out=data/bytes"),
            ("data", "prepare", "text", "--input=b.txt", "--out=data/mixed"),
            ("data", "prepare", "text", "--input=b.txt", "--kind=char", "--out=data/chars"),
            ("data", "prepare", "text", "--input=many", "--out=data/many"),
            ("data", "prepare", "text", "--input=a.txt"),
        ],
        files={
            "a.txt": TEXT,
            "b.txt": MIXED,
            **{f"many/{k}.txt": f"document {k}\n" * (k + 1) for k in range(12)},
        },
    )
    yield Case(
        "data-prepare-synthetic",
        [
            ("data", "prepare", "synthetic", "--out=data/s"),
            ("data", "prepare", "synthetic", "--seed=7", "--out=data/t"),
        ],
        soak=True,
    )


# -- refusals -----------------------------------------------------------------------------------
def error_cases() -> Iterable[Case]:
    def errors(
        name: str, commands: Iterable[Sequence[str]], files: Mapping[str, str | None] | None = None
    ) -> Case:
        return Case(f"error-{name}", list(commands), "error", files)

    yield errors(
        "verbs",
        [
            (),
            ("trian",),
            ("xyz",),
            ("data",),
            ("data", "list"),
            ("run",),
            ("run", "nowhere"),
            ("run", "a", "b"),
        ],
    )
    typed = [
        "--zzz=1",
        "--learing_rate=1",
        "--parametrization.mod=SP",
        "--compile",
        "-n_layer=2",
        "--n_layer=2.5",
        "--learning_rate=fast",
        "--learning_rate=nan",
        "--bias=yes",
        "--optimizer=adam",
        "--parametrization.mode=mupp",
        "--checkpoint_steps=[1,x]",
        "--batch_size=-1",
        "--micro_batch_size=0",
        "--dropout=1.0",
        "--seed=-3",
        "--n_head=3",
        "--n_kv_head=3",
        "--head_lr_mult=2",
        "nothing.py",
        "data",
        "--dataset=tinny",
        "--vocab_size=3",
        "--block_size=100000",
        "--init_from=resume",
        "--branch_from=nowhere",
        "--device=tpu",
        "--out_dir=data/tiny/train.bin/x",
        "--out_dir=data/tiny/train.bin",
        "--out_dir=data",
        "--dataset=shakespeare_char --data_root=elsewhere",
        "bad.py",
        "broken.py",
        "unknown.py",
        "bad.toml",
        "bad.json",
        "bad.yaml",
        "list.json",
        "nested.toml",
        "both.toml",
        "--parametrization.rules=none.py",
        "--learning_rate=1e-5 --min_lr=1e-4",
    ]
    yield errors(
        "train",
        [("train", *flags(), *text.split()) for text in typed],
        DATA
        | {
            "bad.py": "n_layer = 2\nn_head = 1 / 0\n",
            "broken.py": "n_layer = = 2\n",
            "unknown.py": "n_layers = 2\n",
            "bad.toml": "n_layer = \n",
            "bad.json": '{"n_layer": }',
            "bad.yaml": "n_layer: [1\n",
            "list.json": "[1, 2]",
            "nested.toml": "[parametrization]\nmodes = 'SP'\n",
            "both.toml": "max_iters = 5\nmax_tokens = 100\n",
        },
    )
    yield errors(
        "data-sets",
        [("train", *flags(dataset=name)) for name in ("odd", "empty", "torn", "meta")],
        {**{f"data/{name}": "tiny:" for name in ("odd", "empty", "torn", "meta")}}
        | {
            "data/odd/val.bin": "abc",
            "data/empty/meta.pkl": "no",
            "data/torn/val.bin": "\n",
            "data/meta/meta.json": "{",
        },
    )
    yield errors(
        "runs",
        [
            ("run", "a"),
            ("run", "b"),
            ("run", "c"),
            ("sample", "--out_dir=d"),
            ("sample", "--out_dir=a"),
            ("compare", "a", "b"),
        ],
        {
            "a/config.json": "{",
            "b/config.json": "{}",
            "c/config.json": '{"config": {"x": 1}, '
            '"typed": {}, "data": {"name": "d", "fingerprint": "0"}, "branch_from": null}',
        },
    )
    yield errors(
        "sample",
        [
            ("sample", *words.split())
            for words in (
                "--out_dir=nowhere",
                "--strat=x",
                "--num_samples=0",
                "--temperature=hot",
                "--top_k",
                "--start=FILE:none.txt",
                "--start=",
                "--init_from=gpt3",
                "--dtype=int8",
                "none.py",
            )
        ],
    )
    yield errors(
        "params-and-bench",
        [
            ("params", "--n_layer=0"),
            ("params", "--dataset=none"),
            ("params", "none.toml"),
            ("params", "--vocab_size=65", "--n_embd=65"),
            ("bench", "--zz=1"),
            ("bench", "--profile"),
            ("bench", "--peer=nowhere", "--real_data=False"),
            ("bench", "--dataset=none"),
            ("bench", "--profile=True", "--peer=nowhere"),
            ("bench", "--real_data=maybe"),
        ],
    )
    yield errors(
        "data-prepare",
        [
            ("data", "prepare", *words.split())
            for words in (
                "",
                "nothing",
                "txt",
                "text",
                "text --input=none.txt",
                "text --input=a.txt --kind=word",
                "text --input=a.txt --seed=1",
                "synthetic --seed=x",
                "synthetic --kind=char",
                "text --inptu=a.txt",
                "shakespeare_char --input=a.txt",
                "text --input=tiny.txt",
                "text --input=none",
            )
        ],
        {"a.txt": TEXT, "tiny.txt": "a", "none": None},
    )
    yield study_errors()
    yield fit_errors()
    yield errors(
        "coord-check",
        [
            ("coord-check", *words.split())
            for words in (
                "--n_layer=2",
                "--widths=32,64",
                "--widths=a,b,c",
                "--widths=16,32,64 --depths=1,2,4",
                "--widths=16,32,64 --max_iters=5",
                "--widths=16,32,64 --step=3",
                "--widths=16,32,64 --steps=0",
                "--widths=17,32,64",
                "--widths=16,32,64 --seeds=x",
                "--widths=16,32,64 --json=out.txt",
                "--widths=16,32,64 --json=none/out.json",
                "--widths",
                "--widths=16,32,64 --dataset=none",
                "--widths=16,32,64 --init_seed=1",
            )
        ],
    )


def study_errors() -> Case:
    def bad(head: str, rest: str = "[grid]\nseed = [1]\n", base: str = "") -> str:
        return f"[study]\n{head}\n[base]\n{toml(SHARED)}{base}{rest}"

    grid, ladder = 'recipe = "grid"', 'recipe = "ladder"'
    transfer, search = 'recipe = "transfer"', 'recipe = "search"'
    sizes = "".join(f"[[transfer.sizes]]\nn_embd = {n}\n" for n in (8, 16, 24))
    arm = '[[transfer.arms]]\nname = "a"\n'
    space = "[search.space]\nlearning_rate = {low = 1e-4, high = 1e-1, log = true}\n"
    files = {
        "toml": "[study\n",
        "table": bad(grid, "[girds]\nseed = [1]\n"),
        "key": bad('recipe = "grid"\nnmae = "x"'),
        "recipe": bad('recipe = "grd"'),
        "norecipe": bad('name = "x"'),
        "other": bad(grid, "[ladder]\nseeds = [1]\n"),
        "notable": "grid = 3\n" + bad(grid, ""),
        "empty": bad(grid, "[grid]\n"),
        "nolist": bad(grid, "[grid]\nseed = 1\n"),
        "nothing": bad(grid, "[grid]\nseed = []\n"),
        "unknown": bad(grid, "[grid]\nsede = [1]\n"),
        "value": bad(grid, "[grid]\nn_head = [3]\n"),
        "base": bad(grid, base="n_layerz = 2\n"),
        "data": bad(grid).replace('"tiny"', '"tinny"'),
        "name": bad('recipe = "grid"\nname = "runs"'),
        "slash": bad('recipe = "grid"\nname = "a/b"'),
        "ratio": bad(ladder, "[[ladder.sizes]]\nn_embd = 8\n"),
        "few": bad(ladder, "[[ladder.sizes]]\nn_embd = 8\n")
        .replace('"max_iters" = 6', "")
        .replace("max_iters = 6", "tokens_per_param = 1"),
        "least": bad(ladder, "[ladder]\nmin_sizes = 2\n").replace(
            "max_iters = 6", "tokens_per_param = 1"
        ),
        "size": bad(transfer, f'[transfer]\nsize = "width"\n{sizes}{arm}'),
        "sizes": bad(transfer, f'[transfer]\nsize = "n_embd"\n{sizes[:30]}{arm}'),
        "arms": bad(transfer, f'[transfer]\nsize = "n_embd"\n{sizes}'),
        "noname": bad(transfer, f'[transfer]\nsize = "n_embd"\n{sizes}[[transfer.arms]]\n'),
        "lrs": bad(transfer, f'[transfer]\nsize = "n_embd"\n{sizes}{arm}lrs = [1e-3]\n'),
        "space": bad(search, "[search]\ntrials = 2\n"),
        "range": bad(search, "[search.space]\nlearning_rate = {low = 1, high = 0}\n"),
        "choice": bad(search, "[search.space]\nlearning_rate = [1]\n"),
        "sampler": bad(search, f'[search]\nsampler = "grid"\n{space}'),
        "trials": bad(search, f"[search]\ntrials = 0\n{space}"),
        "rungs": bad(search, f"[search]\nrungs = [4, 2]\n{space}"),
        "proxy": bad(search, f"[search]\nproxy = {{n_layer = 1}}\n{space}"),
        "workers": bad(grid, "[grid]\nseed = [1]\n[run]\nworkers = 0\n"),
        "good": bad(grid),
    }
    options = (
        "--workers=x",
        "--workers=0",
        "--budget=much",
        "--backend=cloud",
        "--wrokers=1",
        "--retries=-1",
        "--time_limit=0",
    )
    more = [
        ("study",),
        ("study", "nowhere.toml"),
        ("study", "goood.toml"),
        ("study", "data"),
        ("study", "good.toml", "lrs.toml"),
        ("status", "nothing"),
        ("table",),
        ("table", "x"),
        ("report", "x"),
        ("retry", "x"),
        ("watch",),
        ("watch", "x"),
        ("retry", "x", "--bad=1"),
        ("status",),
        ("table", "grid", "--out=x.txt"),
        ("compare", "a"),
        ("compare", "a", "b"),
        ("compare", "a", "b", "--rope=x"),
        ("compare", "a", "b", "--loss=final"),
        ("compare", "a", "b", "--json=x"),
        ("compare", "a", "b", "--figure=none/x.png"),
        ("transfer", "nowhere"),
    ]
    return Case(
        "error-study",
        [
            *(("study", f"{name}.toml", "--dry-run") for name in files if name != "good"),
            *(("study", "good.toml", "--dry-run", option) for option in options),
            *more,
        ],
        "error",
        DATA | {f"{name}.toml": text for name, text in files.items()},
    )


def fit_errors() -> Case:
    table = "N,D,loss,name\n1e6,1e8,3.1,a\n1e7,1e8,2.9,b\n1e8,1e9,2.5,c\n"
    files = {
        "few.csv": table,
        "empty.csv": "\n",
        "head.csv": "N,D,loss\n",
        "text.csv": table.replace("2.9", "high"),
        "zero.csv": table.replace("1e7", "0"),
        "none.csv": "N,D,loss\n1,2,\n",
        "bad.jsonl": "{\n",
        "list.jsonl": "[1]\n",
        "fit.json": '{"law": "power"}\n',
        "nd.csv": TABLES["nd.csv"],
        "lr.csv": TABLES["lr.csv"],
        "ours.csv": TABLES["ours.csv"],
        "plan.csv": PLAN,
    }
    n_d = "--n=N --d=D --loss=final"
    fits = [
        "",
        "a.csv b.csv",
        "nwo.csv",
        f"empty.csv {n_d}",
        "head.csv --n=N --d=D --loss=loss",
        "few.csv --n=N --d=D",
        "few.csv --n=N --d=D --loss=loss",
        "few.csv --loss=loss",
        "few.csv --n=M --d=D --loss=loss",
        "few.csv --n=name --d=D --loss=loss",
        "text.csv --n=N --d=D --loss=loss",
        "zero.csv --n=N --d=D --loss=loss",
        "none.csv --n=N --d=D --loss=loss",
        "bad.jsonl --n=N --d=D --loss=loss",
        "list.jsonl --n=N --d=D --loss=loss",
        f"nd.csv {n_d} --law=chinchila",
        f"nd.csv {n_d} --law=xyz",
        f"nd.csv {n_d} --objective=l2",
        f"nd.csv {n_d} --delta=0",
        f"nd.csv {n_d} --delta=x",
        f"nd.csv {n_d} --bootstrap=1.5",
        f"nd.csv {n_d} --bootstrap=5",
        f"nd.csv {n_d} --drop-worst=99",
        f"nd.csv {n_d} --drop-worst=-1",
        f"nd.csv {n_d} --resample=cluster",
        f"nd.csv {n_d} --resample=pear",
        f"nd.csv {n_d} --group=cel",
        f"nd.csv {n_d} --holdout=1",
        f"nd.csv {n_d} --holdout=x",
        f"nd.csv {n_d} --law=repetition",
        f"nd.csv {n_d} --u=N",
        f"nd.csv {n_d} --c=C",
        "nd.csv --law=power --n=N --d=D --loss=final",
        "nd.csv --law=power --loss=final",
        "nd.csv --law=power --c=C --loss=final --isoflop",
        f"nd.csv {n_d} --law=kaplan --multiverse",
        f"nd.csv {n_d} --figures=few.csv",
        f"nd.csv {n_d} --figures=a/b/c",
        f"nd.csv {n_d} --json=x.txt",
        f"nd.csv {n_d} --jsn=x",
        f"nd.csv {n_d} --isoflop=1",
        f"nd.csv {n_d} --seed=99999999999",
    ]
    plans = [
        "",
        "nd.csv",
        "nd.csv --budget=x",
        "nd.csv --budget=0",
        "fit.json --budget=1e20",
        "none.json --budget=1e20",
        f"nd.csv {n_d} --budget=1e20 --holdout=1",
        f"nd.csv {n_d} --budget=1e20 --vocab_size=1.5",
        f"nd.csv {n_d} --budget=1e20 --tokens-per-second=1 --flops-per-second=1",
    ]
    designs = [
        "",
        "none.csv",
        "lr.csv",
        "few.csv --n=N --d=D",
        "plan.csv --question=zzz",
        "plan.csv --question=L@x",
        "plan.csv --worlds=3",
        "plan.csv --noise=2",
        "plan.csv --seeds=0",
        "plan.csv --truth=none.json",
        "plan.csv --truth=fit.json",
        "plan.csv --resample=cluster",
        "plan.csv --resample=x",
        "plan.csv --extra=1",
        "none.toml",
        "none.toml --n=N",
        "plan.csv --law=repetition",
    ]
    lr = "--size=width --lr=lr --loss=final"
    transfers = [
        "",
        "none.csv",
        "lr.csv",
        "lr.csv --size=widht",
        "lr.csv --size=width",
        f"lr.csv {lr}",
        f"lr.csv {lr} --only=muP",
        f"lr.csv {lr} --by=mode --only=nuP",
        f"lr.csv {lr} --by=mdoe",
        f"lr.csv {lr} --by=mode --tolerance=x",
        f"lr.csv {lr} --by=mode --base=48",
        "lr.csv --size=mode --lr=lr --loss=final",
        "lr.csv --size=width --lr=lr",
        "ours.csv",
        "head.csv",
        "few.csv few.csv",
        f"lr.csv {lr} --json=x",
        f"lr.csv {lr} --figure=x.gif",
    ]
    commands = [
        (verb, *text.split())
        for verb, texts in (
            ("fit", fits),
            ("plan", plans),
            ("design", designs),
            ("transfer", transfers),
        )
        for text in texts
    ]
    return Case("error-tables", commands, "error", files)


def help_cases() -> Iterable[Case]:
    yield Case(
        "help",
        [
            ("--help",),
            ("help",),
            (),
            ("data", "prepare", "--help"),
            *((verb, "--help") for verb in VERBS if verb not in ("data", "run")),
        ],
        "help",
        soak=True,
    )


CASES: list[Case] = [
    *help_cases(),
    *params_cases(),
    *data_cases(),
    *error_cases(),
    *identity_cases(),
    *fit_cases(),
    *reading_cases(),
    *training_cases(),
    *study_cases(),
]
