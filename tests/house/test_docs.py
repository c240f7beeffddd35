"""The site: it builds without a warning, its links lead somewhere, its pages do what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest
from forecasts import forecast_study, run_in, seal_of
from pages import Reader, blocks_of, desk_in, small_data
from tiny import PATIENCE, ROOT

import nanoscale
from nanoscale.commands.main import VERBS, program
from nanoscale.errors import BAD_INPUT, DONE, FAILURE, INCONCLUSIVE, INTERRUPTED
from nanoscale.spec.sources import FIELDS

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
RUN = ("sh", "python", "toml")  # languages of blocks that do something
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


# -- the pages ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.language in RUN for block in blocks_of(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_a_page_does_what_it_says(page, tmp_path, data):
    Reader(desk_in(tmp_path, data)).read(page)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```sh\nnanoscale fit none.csv\n```\n", "none.csv"),
        ("```sh\nfalse | true && false\n```\n", "false"),
        (
            "```sh\nnanoscale fit docs/results/shakespeare/table.csv\n```\n\n```\na = 0.5\n```\n",
            "not printed: a = 0.5",
        ),
        (
            "```sh\nnanoscale fit none.csv\n```\n```\nerror: none.tsv: no such table\n```\n",
            "not printed: error: none.tsv",
        ),
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", "AssertionError"),
        ("```toml\n[study]\nrecipe = 'grid'\n[grid]\nn_layers = [1]\n```\n", "n_layers"),
        ("```python\n# mine.py\n```\n```sh\npython mine.py\ntest -e yours.py\n```\n", "yours"),
    ],
    ids=["command", "shell", "output", "refusal", "python", "toml", "file"],
)
@pytest.mark.slow
def test_a_page_that_does_not_is_seen(text, wrong, tmp_path, data):
    page = tmp_path / "page.md"
    page.write_text(text)
    (tmp_path / "desk").mkdir()
    with pytest.raises(AssertionError, match=wrong):
        Reader(desk_in(tmp_path / "desk", data)).read(page)


# -- the site -------------------------------------------------------------------------------------
class Page(HTMLParser):
    """The anchors of a built page, where it leads, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, pairs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in pairs}
        self.anchors.add(attributes.get("id", ""))
        if tag == "a":
            self.links.append(attributes.get("href", "#"))
        if tag in LOADED:
            self.loads.append(attributes.get(LOADED[tag], ""))


@pytest.mark.slow
def test_the_site(tmp_path):
    """Builds it, in about 10 s of one core, and reads what was built."""
    site = tmp_path / "html"
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*build, "-d", str(tmp_path / "trees"), str(DOCS), str(site)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > len(PAGES)  # and a search, and an index

    all_links_lead_somewhere(site, pages)
    nothing_is_asked_of_another_host(site, pages)
    every_verb_key_and_name_has_its_place(site, pages)


def all_links_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and target in pages:
                known = unquote(parts.fragment) in pages[target].anchors
                assert known, f"{path.relative_to(site)}: {link}"


def nothing_is_asked_of_another_host(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for load in page.loads:
            assert not urlsplit(load).netloc, f"{path.relative_to(site)}: {load}"
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text), path.relative_to(site)


def every_verb_key_and_name_has_its_place(site: Path, pages: dict[Path, Page]) -> None:
    reference = site / "reference"
    keys = pages[reference / "config.html"].anchors
    assert not {re.sub(r"[._]", "-", key) for key in FIELDS} - keys
    names = pages[reference / "python.html"].anchors
    assert (
        not {f"nanoscale.{name}" for name in nanoscale.__all__} - names - {"nanoscale.__version__"}
    )
    places = pages[reference / "commands.html"].anchors
    context = click.Context(program)
    for verb in VERBS:
        assert f"nanoscale-{verb}" in places
        command = program.get_command(context, verb)
        for parameter in command.params:
            option = parameter.opts[0].removeprefix("--")
            if isinstance(parameter, click.Option):
                assert f"cmdoption-nanoscale-{verb}-{option}" in places
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    assert "`nanoscale.__version__`" in text


def test_the_exit_codes_are_the_programs():
    said = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", said, re.MULTILINE)]
    assert codes == [DONE, FAILURE, BAD_INPUT, INCONCLUSIVE, INTERRUPTED]


# -- the files ------------------------------------------------------------------------------------
def keys_said(heading: str) -> tuple[set[str], set[str]]:
    """The keys that the page of files gives a file; those always there, and the others."""
    text = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    section = text.partition(f"### `{heading}`\n")[2].partition("\n#")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    keys = re.findall(r"`(\w+)`( \\\*)?", " ".join(cells))
    return {key for key, mark in keys if not mark}, {key for key, mark in keys if mark}


def says(heading: str, keys: set[str]) -> None:
    """Every key has a line, and every line that is not marked a key."""
    always, sometimes = keys_said(heading)
    assert always, heading
    assert keys - always - sometimes == set()
    assert always - keys == set()


@pytest.mark.slow
def test_the_page_of_files_has_every_key_of_real_ones(tmp_path):
    sizes = [f"{{ n_embd = {width} }}" for width in (4, 6, 8, 10, 12, 14, 16, 20)]
    question = f"sizes = [{', '.join(sizes)}]\nheld_out = {{ n_embd = 48 }}"
    base = "tokens_per_param = 4\nlearning_rate = 3e-3\nstats_interval = 10"
    root = run_in(tmp_path, forecast_study(base, question)) / "experiments_out"
    study, run = root / "f", next((root / "runs").iterdir())

    for name in ("config.json", "status.json", "metrics.json"):
        says(name, {*json.loads((run / name).read_text())})
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    says("metrics.jsonl", {key for row in rows for key in row})
    for name in ("study.json", "answer.json", "predictions/score.json"):
        says(name, {*json.loads((study / name).read_text())})
    says("predictions/SHA-256.json", {*json.loads(seal_of(study).read_text())})
    columns = (study / "table.csv").read_text().splitlines()[0].split(",")
    says("table.csv", {*columns} - {*FIELDS} - {"stage"})

    page = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    for path in (*run.iterdir(), *study.iterdir()):
        assert f"`{path.name}`" in page or f"`{path.name}/" in page, path.name
