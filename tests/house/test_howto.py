"""The how-to pages: their files work, and what they show and refuse is what is printed.

`test_docs.py` runs every page's commands; here the numbers are held too. Times are not compared,
nor what is said behind a cell; numbers that come from training may differ from CPU to CPU.
"""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import ROOT, run_nanoscale, run_python

import nanoscale as ns
from nanoscale.__main__ import main
from nanoscale.data.prepare import PROSE_FILE, PROSE_PACKAGE, prepare
from nanoscale.errors import DONE, FAILURE, UserError
from nanoscale.experiments import backends
from nanoscale.experiments.clusters import Slurm
from nanoscale.experiments.machine import Slot
from nanoscale.laws import registry
from nanoscale.studies import recipe
from nanoscale.studies.study_file import read_study
from nanoscale.training.numerics import Numerics, require_kept

HOWTO = ROOT / "docs" / "howto"
RESULTS = ROOT / "docs" / "results"
NAMES = ("text", "scheme", "law", "recipe", "optimizer", "backend", "cluster", "gpu", "python")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
BLURRED = (  # what of a line is not compared
    (re.compile(r"(?:\d+ h )?\d+ min(?: \d\d s)?|\b\d+\.\d s\b"), "TIME"),
    (re.compile(r"  \((?:the first run here|as .*)\)$"), ""),
    (re.compile(r", by a calibration of TIME"), ""),
    (re.compile(r"\b\d+ workers?\b"), "workers"),
    (re.compile(r"\b[0-9a-f]{16}\b"), "HASH"),
    (re.compile(r"  +"), "  "),
)
TRAINED = 0.3  # how far a number that comes from training may be from that of another CPU


# -- a page, and what it shows --------------------------------------------------------------------
def page(name: str) -> str:
    return (HOWTO / f"{name}.md").read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and text of every block."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page(name), re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found]


def shown(name: str, line: str) -> list[str]:
    """The lines of the block in which one begins so."""
    for _, text in blocks(name):
        lines = text.splitlines()
        if any(each.startswith(line) for each in lines):
            return lines
    raise AssertionError(f"{name}.md shows no {line!r}")


def blurred(line: str) -> str:
    for pattern, text in BLURRED:
        line = pattern.sub(text, line.rstrip())
    return line


def alike(one: str, other: str, off: float) -> bool:
    """Whether two lines have the same words, and numbers that are off by at most that share."""
    one, other = blurred(one), blurred(other)
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(
        float(a.replace(",", "")) == pytest.approx(float(b.replace(",", "")), rel=off)
        for a, b in pairs
    )


def is_printed(lines: Iterable[str], printed: str, off: float = 1e-3) -> None:
    """Every line is printed, in this order; `...` stands for any."""
    said = iter(printed.splitlines())
    for line in lines:
        if line != "...":
            assert any(alike(line, each, off) for each in said), f"not printed: {line}\n{printed}"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("loss 1.50, 3.1 s", "loss 1.51, 12 min 04 s", True),
        ("loss 1.50", "loss 1.60", False),
        ("loss 1.50 at C", "loss 1.50 at D", False),
        ("N 7,824  x  (the first run here)", "N 7,830    x  (as run-1 but seed 2 for 1)", True),
        ("L2 is one", "L3 is one", False),
    ],
)
def test_lines_are_alike_by_their_words_and_about_by_their_numbers(one, other, same):
    assert alike(one, other, 0.01) == same


# -- the files beside the pages -------------------------------------------------------------------
def files_of(name: str) -> list[tuple[str, str]]:
    """The blocks of a page that are files, by their names."""
    named = []
    for _, text in blocks(name):
        head = re.match(r"# ([\w.]+\.(?:py|toml))\n", text)
        if head:
            named.append((head[1], text))
    return named


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_a_page_shows_lies_beside_it(name):
    for file, text in files_of(name):
        beside = (HOWTO / file).read_text(encoding="utf-8")
        if file == "my_rules.py":
            beside = f"# {file}\n" + beside.rpartition('"""\n\n')[2]
        assert text == beside, file
        assert f"[{file}]({file})" in page(name)


def test_every_file_beside_the_pages_is_shown_by_one():
    shown_ones = {file for name in NAMES for file, _ in files_of(name)}
    beside = {path.name for path in HOWTO.iterdir() if path.suffix in (".py", ".toml")}
    assert beside - shown_ones == {"my_tracker.py", "cluster.toml"}
    assert blocks("cluster")[0][1] in (HOWTO / "cluster.toml").read_text(encoding="utf-8")
    assert "[cluster.toml](cluster.toml)" in page("cluster")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_be_read_in_ten_minutes(name):
    assert 40 <= len(page(name).splitlines()) <= 120


# -- a desk ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def bible(tmp_path_factory) -> Path:
    """The text of text.md as a file, and as the data set `mine`; `synthetic` beside it."""
    folder = tmp_path_factory.mktemp("bible")
    found = importlib.util.find_spec(PROSE_PACKAGE)
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).with_name(PROSE_FILE).read_text(encoding="utf-8")
    (folder / "my.txt").write_text(source.split('"""')[1].strip() + "\n", encoding="utf-8")
    prepare("text", input=str(folder / "my.txt"), out=folder / "data" / "mine")
    prepare("synthetic", out=folder / "data" / "synthetic")
    (folder / "data" / "pysource").symlink_to(folder / "data" / "mine")  # takes a while to make
    return folder


@pytest.fixture
def desk(bible, tmp_path, monkeypatch) -> Path:
    """A reader's folder: the text, the data, and copies of all the files."""
    for name in ("my.txt", "data"):
        (tmp_path / name).symlink_to(bible / name)
    for name in NAMES:
        for file, text in files_of(name):
            (tmp_path / file).write_text(text, encoding="utf-8")
    shutil.copy(HOWTO / "cluster.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What a page registers is gone after it."""
    ours = {name: backends._MAKERS[name] for name in backends._BUILT_IN}  # without other tests'
    monkeypatch.setattr(backends, "_MAKERS", ours)
    monkeypatch.setattr(recipe, "_registered", {})
    monkeypatch.setattr(registry, "LAWS", dict(registry.LAWS))
    monkeypatch.setattr(registry, "_files", {})


def shorter(file: str, **values: object) -> None:
    """Give keys of a study file other values."""
    text = Path(file).read_text(encoding="utf-8")
    for key, value in values.items():
        text, count = re.subn(rf"^{key} = \S+", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    Path(file).write_text(text, encoding="utf-8")


def printed_by(*arguments: str, code: int = DONE) -> str:
    done = run_nanoscale(*arguments, cwd=Path.cwd())
    assert done.returncode == code, done.stderr
    return done.stdout


# -- what is refused ------------------------------------------------------------------------------
LATIN = b"s\xfc\xdf\n"
LION = "nanoscale/model/NAME.py"
TRAIN = (
    "train --parametrization.rules=my_rules.py --parametrization.mode=muP-embed --dataset=mine "
    "--n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max_iters=4 "
    "--gradient_accumulation_steps=1 --eval_interval=0 --device=cpu --final_eval_tokens=64 "
    "--lr_schedule=constant --warmup_frac=0 --out_dir=out"
)
FIT = "fit planted.csv --c=flops --loss=loss --laws=law.py"
PLANTED = "flops,loss\n" + "".join(f"{10.0**n},{3 - 0.1 * n}\n" for n in range(10, 18))
PARAMS = (
    "params --vocab_size=9 --parametrization.rules=my_rules.py --parametrization.mode=muP-embed"
)

# page -> (file, what is changed in it, into what, the command) of each line that the page quotes
REFUSED: dict[str, list[tuple[str, str | bytes, str | bytes, str]]] = {
    "text": [
        ("text.toml", "n_embd = 24", "n_embed = 24", "study text.toml"),
        ("text.toml", "n_embd = 20", "n_embd = 21", "study text.toml"),
        ("text.toml", "n_layer = 2", "", "study text.toml"),
        ("my.txt", b"", LATIN, "data prepare text --input my.txt --out data/other"),
        (
            "my.txt",
            b"",
            b"to be or not to be\n" * 20,
            "data prepare text --input my.txt --out data/mine",
        ),
    ],
    "scheme": [
        ("my_rules.py", "muP-embed", "muP-embed", f"{PARAMS[:-2]}d"),
        ("my_rules.py", '["embedding"]', '["embeding"]', PARAMS),
        ("my_rules.py", '"muP-embed"', '"muP"', PARAMS),
        ("my_rules.py", "", "", "coord-check --widths=32,64 --dataset=mine"),
    ],
    "law": [
        ("law.py", '"late-power"', '"power"', f"{FIT} --law=late-power"),
        ("law.py", "(C + {C0})", "(C + {c0})", f"{FIT} --law=late-power"),
        ("law.py", "K / (C + C0)", "K / (C + c0)", f"{FIT} --law=late-power"),
        ("law.py", "", "", f"{FIT} --law=late-pwer"),
    ],
    "recipe": [
        ("recipe.toml", "[1, 2, 3]", "[1]", "study recipe.toml"),
        ("recipe.toml", "seeds =", "seed =", "study recipe.toml"),
        ("recipe.toml", '"recipe.py"', '"recipy.py"', "study recipe.toml"),
        ("recipe.py", 'recipe("noise"', 'recipe("grid"', "study recipe.toml"),
    ],
    "backend": [
        ("backend.py", "", "", "study backend.toml --backend=thread"),
        ("backend.py", 'backend("threads"', 'backend("local"', "study backend.toml"),
        ("backend.py", "ns.register", "# ns.register", "study backend.toml"),
    ],
    "cluster": [
        ("cluster.toml", "partition =", 'array = "0-9", partition =', "study cluster.toml"),
        ("cluster.toml", '"gpu:1"', '["gpu:1"]', "study cluster.toml"),
        (
            "cluster.toml",
            '"slurm"\nworkers = 16\nthreads = 4\nbackend_options = {',
            '"ray"\nbackend_options = { address = 5,',
            "study cluster.toml",
        ),
    ],
}
LATER = {  # lines that are quoted of what is not refused at once; tested with their pages
    "there is no sbatch here",
    "cannot continue as this run",
    "changed since this run was made",
    "is of your own file, without which nobody",
    "'Series' object has no attribute 'sdt'",
}


def cases() -> list[tuple[str, str, str | bytes, str | bytes, str]]:
    return [(name, *case) for name, of_page in REFUSED.items() for case in of_page]


def change(file: str, old: str | bytes, new: str | bytes) -> None:
    """Put one for the other, everywhere; of a text that is data, the new one alone."""
    path = Path(file)
    if isinstance(new, bytes):
        path.unlink()
        path.write_bytes(new)
        return
    text = path.read_text(encoding="utf-8")
    assert old in text
    if old == "n_layer = 2":  # a ladder of three sizes
        new = "".join(re.findall(r"^    \{.*\n", text, re.MULTILINE)[:3])
        text = re.sub(r"(?:^    \{.*\n)+", new, text, flags=re.MULTILINE)
    elif old:
        text = text.replace(str(old), str(new))
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "command"), cases(), ids=[f"{c[0]}-{c[1]}" for c in cases()]
)
def test_what_a_page_says_is_refused_is(name, file, old, new, command, desk, capsys):
    (desk / "planted.csv").write_text(PLANTED)
    change(file, old, new)
    assert main(command.split()) == 2
    said = capsys.readouterr().err.replace(f"{desk}/", "")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert errors[0] in page(name).splitlines(), errors[0]


@pytest.mark.parametrize("name", [*REFUSED])
def test_every_refusal_that_a_page_quotes_is_tested(name):
    quoted = [line for line in page(name).splitlines() if line.startswith("error: ")]
    later = [line for line in quoted if any(words in line for words in LATER)]
    assert len(quoted) - len(later) == len(REFUSED[name])


# -- a study of your own text ---------------------------------------------------------------------
@pytest.mark.slow
def test_text_from_a_file_to_a_law(desk):
    made = printed_by("data", "prepare", "text", "--input", "my.txt", "--out", "again")
    lines = shown("text", "vocab size")
    is_printed([line.replace("data/mine", "again") for line in lines], made, 0)

    text = Path("text.toml").read_text(encoding="utf-8")
    shorter("text.toml", tokens_per_param=1, final_eval_tokens=2048)
    change("text.toml", "seeds = [1, 2, 3]", "seeds = [1]")
    change("text.toml", "seeds = [1, 2]", "seeds = [1]")
    said = printed_by("study", "text.toml")
    assert "6 COMPLETE" in said
    is_printed(shown("text", "[mine] by the law")[-1:], said)

    Path("text.toml").write_text(text, encoding="utf-8")
    is_printed(shown("text", "[mine] 14 runs"), printed_by("study", "text.toml", "--dry-run"), 0.02)


def test_the_law_that_text_shows_is_that_of_its_runs(capsys):
    table = RESULTS / "text" / "table.csv"
    frame = ns.read_table(table).astype({"flops": float, "val_loss": float})
    law = ns.fit_power_law(frame["flops"], frame["val_loss"], size=frame["total_params"])
    said = [f"[mine] {line}" for line in (law.in_words(), *law.summary())]
    lines = shown("text", "[mine] by the law")
    is_printed(lines[: lines.index("...")], "\n".join(said))
    assert main(["fit", str(table)]) == 3
    is_printed([line.removeprefix("[mine] ") for line in lines[1:4]], capsys.readouterr().out)
    kept = json.loads((RESULTS / "text" / "power.json").read_text(encoding="utf-8"))
    assert kept["params"] == pytest.approx(law.params)
    assert len(frame) == len(read_study(HOWTO / "text.toml").question.rows)
    sizes = sorted({int(size) for size in frame["total_params"]})
    foreseen = law.predict(C=10 * max(frame["flops"]))
    low, high = foreseen.loss_ci95
    results = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert f"{len(frame)} runs, {len(sizes)} sizes from {sizes[0]:,} to {sizes[-1]:,}" in results
    assert f"a loss of\n{foreseen.loss:.3f} [{low:.3f}, {high:.3f}]" in results


# -- a parametrization ----------------------------------------------------------------------------
def commands(name: str) -> list[list[str]]:
    """The commands of a page's sh blocks, in words."""
    lines = [
        line for language, text in blocks(name) if language == "sh" for line in text.split("\n")
    ]
    return [line.split()[1:] for line in lines if line.startswith("nanoscale ")]


@pytest.mark.slow
def test_a_scheme_is_what_params_shows_and_its_check_fails(desk):
    params, own, mup = commands("scheme")
    is_printed(shown("scheme", "tensor"), printed_by(*params), 0)
    two = "--seeds=2"  # are enough for what is as wrong as that
    is_printed(shown("scheme", "fail: update"), printed_by(*own, two, code=FAILURE), 0.05)
    is_printed(shown("scheme", "pass: all"), printed_by(*mup), 0)


@pytest.mark.slow
def test_a_run_knows_its_rules(desk):
    printed_by(*TRAIN.split())
    rules = Path("my_rules.py")
    rules.write_text(rules.read_text() + "# more\n")
    refusals = []
    for command in (f"{TRAIN} --max_iters=6 --init_from=resume", "eval out --tokens=64"):
        done = run_nanoscale(*command.split(), cwd=desk)
        assert done.returncode == 2
        refusals.append(done.stderr.replace(f"{desk}/", ""))
    is_printed(shown("scheme", "error: out: cannot"), "".join(refusals))
    printed_by(*TRAIN.split())
    assert (desk / "out.old-1").is_dir()


# -- a law ----------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_law_finds_what_was_planted_and_beats_the_others(desk):
    assert run_python("planted.py", cwd=desk).returncode == 0
    ((*fit,),) = commands("law")
    said = printed_by(*fit, "--json=fit.json")
    is_printed(shown("law", "L(C) ="), said, 0.02)
    is_printed(shown("law", "              held out"), said, 0.05)
    found = json.loads(Path("fit.json").read_text())
    planted = re.search(r"E = ([\d.]+), K = ([\d.]+), g = ([\d.]+), C0 = ([\de]+)", page("law"))
    for name, value in zip(("E", "K", "g", "C0"), map(float, planted.groups()), strict=True):
        low, high = found["ci95"][name]
        assert low < value < high
    assert found["laws_digest"]
    options = ["--hold=C0=3e13", "--bootstrap=100", "--at=C=1e17", "--seal=seal.json"]
    done = run_nanoscale("forecast", *fit[1:-1], *options, cwd=desk)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] in page("law")
    assert not Path("seal.json").exists()


# -- a question -----------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_recipe_answers_and_a_mistake_in_it_costs_no_run(desk):
    said = printed_by("study", "recipe.toml")
    lines = shown("recipe", "[noise] 6 runs")
    is_printed(lines[:1], said, 0)
    is_printed(lines[1:], said, TRAINED)
    assert ns.answer("noise").numbers.keys() == {"init_seed", "data_seed"}

    change("recipe.py", "losses.std", "losses.sdt")
    done = run_nanoscale("report", "noise", cwd=desk)
    assert done.stderr.replace(f"{desk}/", "").strip() in page("recipe")
    change("recipe.py", "losses.sdt", "losses.std")
    change("recipe.toml", "[1, 2, 3]", "[1, 2, 3, 4]")
    assert "8 runs: 2 new, 6 cached" in printed_by("study", "recipe.toml", "--dry-run")


def test_a_recipe_has_the_parts_that_the_page_names():
    told = re.search(r"`Recipe\((.*?)\)`", page("recipe"))[1].split(", ")
    assert list(recipe.Recipe.__dataclass_fields__)[: len(told)] == told
    question = re.search(r"`Question\((.*?)\)`", page("recipe"))[1].split(", ")
    assert list(recipe.Question.__dataclass_fields__)[: len(question)] == question
    assert {"numbers", "verdict", "files"} <= recipe.Answer.__dataclass_fields__.keys()
    assert recipe.Picture._fields == ("name", "caption", "figure")


# -- an optimizer ---------------------------------------------------------------------------------
def test_which_rate_is_whose(capsys):
    params, *_ = commands("optimizer")
    assert main(params) == 0
    is_printed(shown("optimizer", "tensor"), capsys.readouterr().out, 0)


def test_the_rates_that_go_together_are_those_of_the_runs():
    table = RESULTS / "optimizer" / "table.csv"
    ranking = ns.rank(table, keys=["muon_lr", "learning_rate"])
    is_printed(
        [line.removeprefix("[both] ") for line in shown("optimizer", "[both] lowest")],
        "\n".join(ranking.summary()),
    )
    assert len(ranking.tied) == 7
    assert len(ranking.settings) - 1 == 11
    assert "seven of the eleven others are tied" in page("optimizer")
    assert len(read_study(HOWTO / "optimizer.toml").question.rows) == len(ns.read_table(table))


def test_what_was_measured_of_optimizers():
    def ends(values: Sequence[float], form: str) -> str:
        return f"[{values[0]:{form}}, {values[1]:{form}}]"

    ablation = json.loads((RESULTS / "ablation" / "ablation.json").read_text())
    worth = ablation["AdamW in place of Muon"]
    text = page("optimizer")
    assert f"needs {worth['value']:.2f} {ends(worth['ci95'], '.2f')} times the FLOPs" in text
    assert worth["verdict"] == "holds"
    for file in ("width_adamw", "width_muon_small_batch", "width_muon"):
        record = json.loads((RESULTS / "transfer" / f"{file}.json").read_text())
        verdict = record["verdicts"]["muP"] if "verdicts" in record else record
        drift = verdict["drift"]
        assert f"by {drift['value']:.2f} {ends(drift['ci95'], '.2f')}" in text
        if file == "width_muon_small_batch":
            shift = abs(verdict["largest_shift"]["value"])
            assert f"{shift:.1f} octaves too high" in text
            assert f"lost {verdict['max_regret']['value']:.3f} nats" in text


def test_what_a_fork_changes_is_there():
    text = page("optimizer").partition("**Add one of your own.**")[2]
    for path in re.findall(r"`((?:nanoscale|tests)/[\w/.]+)`", text):
        assert path == LION or (ROOT / path).exists(), path
    places = re.findall(r"^\d\. `([\w/.]+)`(?:, `([\w.]+)`)?", text, re.MULTILINE)
    assert len(places) == 7
    for path, name in places:
        if name:
            assert name.rpartition(".")[2] in (ROOT / path).read_text(encoding="utf-8")
    optim = (ROOT / "nanoscale" / "model" / "optim.py").read_text(encoding="utf-8")
    assert "def parameter_groups" in optim
    assert "class Optimizers" in optim
    assert "class Idle" in (ROOT / "nanoscale" / "spec" / "identity.py").read_text()


# -- a backend ------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_backend_of_ones_own_runs_a_grid(desk):
    said = printed_by("study", "backend.toml")
    lines = shown("backend", "[lrs] 2 runs")
    is_printed(lines[:1], said, 0)
    is_printed(lines[1:], said, TRAINED)

    shorter("backend.toml", max_iters=7)
    change("backend.toml", "workers = 2", 'backend_options = { command = ["false"] }')
    done = run_nanoscale("study", "backend.toml", cwd=desk)
    assert done.returncode == FAILURE
    is_printed(shown("backend", "[lrs] FAILED")[-1:], done.stdout)


# -- a cluster ------------------------------------------------------------------------------------
def test_a_study_on_a_cluster_is_planned_submitted_and_refused(desk, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["study", "cluster.toml", "--dry-run"]) == 0
    is_printed(shown("cluster", "[lrs] 4 runs"), capsys.readouterr().out, 0.001)

    assert main(["study", "cluster.toml"]) == 2
    error, *others = shown("cluster", "error: ")
    assert capsys.readouterr().err.strip() == error
    assert main(["study", "cluster.toml", "--backend=local", "--dry-run", "--budget=1"]) == 0
    assert others[-1] in capsys.readouterr().err

    (script,) = (desk / "experiments_out" / "slurm").glob("*.sh")
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    ours = [line for line in lines if not line.startswith("#SBATCH --output")]
    assert shown("cluster", "#SBATCH --job") == ours
    how = read_study(Path("cluster.toml")).how
    slurm = Slurm(options=how["backend_options"], home=tmp_path)
    assert len(slurm.slots("cuda", how["threads"], None)) == 64
    assert "(64 without it)" in page("cluster")
    assert "srun" in slurm.script("x", 1, Slot({}))


# -- a GPU ----------------------------------------------------------------------------------------
def test_memory_on_a_gpu_is_what_params_says(capsys):
    said = []
    for command in commands("gpu"):
        assert main(command) == 0
        said.append(capsys.readouterr().out)
    is_printed(shown("gpu", "MB total"), "".join(said), 0)


def test_the_check_of_a_gpu_has_the_items_of_the_page():
    script = str(RESULTS / "speed" / "gpu_check.py")
    check = runpy.run_path(script, run_name="gpu_check")
    items = re.search(r"most first: ((?:`\w+` ?)+)\.", page("gpu"))[1]
    assert re.findall(r"`(\w+)`", items) == list(check["LIMITS"])
    assert check["TOTAL"] == 8 * 60
    assert "In at most eight minutes ten items" in page("gpu")


def test_what_a_gpu_is_refused(desk, capsys):
    (first, *_), (second, *_) = (shown("gpu", f"error: {word}") for word in ("device", "this run"))
    if not torch.cuda.is_available():
        assert main(TRAIN.replace("device=cpu", "device=cuda").split()) == 2
        assert capsys.readouterr().err.strip() == first
    was = Numerics("cpu", "a CPU", "float32", 1, "torch", "highest", False, torch.__version__)
    with pytest.raises(UserError) as refusal:
        require_kept(was, replace(was, device="cuda"), {})
    assert second == f"error: {refusal.value}"


# -- Python ---------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_same_from_python(desk):
    done = run_python("python.py", cwd=desk)
    assert done.returncode == 0, done.stderr
    is_printed(shown("python", "<Study 'rates'"), done.stdout, TRAINED)

    refusals = []
    for call in (
        lambda: ns.open_study("rats"),
        lambda: ns.run_study("rates"),
        lambda: ns.load_config(learning_rat=1),
    ):
        with pytest.raises(ns.UserError) as refusal:
            call()
        refusals.append(str(refusal.value))
    lines = shown("python", "no study 'rats'")
    assert lines[:2] == refusals[:2]
    assert lines[2] in refusals[2]


def test_the_names_of_the_page_are_there():
    for name in re.findall(r"`ns\.(\w+)", page("python")):
        assert name in ns.__all__, name
