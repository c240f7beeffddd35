"""The site: it builds without a warning, its links lead somewhere, its pages do what they say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from forecasts import forecast_study, run_in, seal_of
from pages import Reader, blocks_of, desk_in, reason_to_skip, small_data
from tiny import ROOT

import nanoscale
from nanoscale.commands.main import VERBS
from nanoscale.errors import BAD_INPUT, DONE, FAILURE, INCONCLUSIVE, INTERRUPTED
from nanoscale.spec.sources import FIELDS

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
RUN = [page for page in PAGES if any(b.language in ("sh", "python", "toml") for b in blocks_of(page))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page, tmp_path, data):
    Reader(desk_in(tmp_path, data)).read(page)
