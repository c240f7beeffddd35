"""What the README shows is what comes out, and links lead somewhere; `test_docs.py` runs it."""

from __future__ import annotations

import json
import re

import pytest
from pages import blocks_of
from tiny import ROOT, run_python

from nanoscale.__main__ import main
from nanoscale.spec.resolve import resolve, warnings
from nanoscale.spec.sources import build, parse_arguments

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_its_two_commands_and_the_rest():
    shell = [block for block in blocks_of(ROOT / "README.md") if block.language == "sh"]
    found = [command for block in shell for command in block.commands]
    assert found[0] == "make study"
    assert len(found) >= 8
    assert "`make test`" in README


def test_the_snippet_is_the_originals():
    from grids import SNIPPET

    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert snippet.split() == SNIPPET.split()


@pytest.mark.slow
def test_the_example_from_python_prints_the_law():
    snippet = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1]
    done = run_python("-c", snippet, cwd=ROOT)
    assert done.stdout.startswith("L(C) = E + K / C^g\nat 5.86e+13"), done.stderr


def test_the_law_of_the_first_screen_is_what_fit_prints(capsys):
    table = ROOT / "docs" / "results" / "shakespeare" / "table.csv"
    assert main(["fit", str(table)]) == 3  # E, K and g stay letters
    law, far = capsys.readouterr().out.splitlines()[:2]
    assert f"```\n{law}\n{far}\n```" in README
    record = json.loads((table.parent / "power.json").read_text(encoding="utf-8"))
    assert record["summary"][:2] == [law, far]


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("preset", sorted((ROOT / "config").glob("*.py")), ids=lambda p: p.stem)
def test_every_preset_is_a_config(preset):
    config = resolve(build(parse_arguments([str(preset)])), 50304)
    assert config.max_iters > 0
    assert not warnings(config)
