"""A study's page and its live view in a real browser, clicked through: chromium, by Playwright.

`pip install playwright`; the browser is the system's (`chromium`, or what CHROMIUM names).
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_worker
import pytest
from fake_worker import SURFACE, TINY

from nanoscale.__main__ import main
from nanoscale.experiments import Study
from nanoscale.store.folder import RUNNING
from nanoscale.studies.live import REFRESH_SECONDS, server_of

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium here; CHROMIUM names one"),
]

WIDTHS = (390, 900, 1400)  # a phone's, a window's, a screen's
KEYS = {"n_layer": 2, "batch_size": 4, "beta1": SURFACE, "eval_interval": 0}
BASE = {key: value for key, value in (TINY | KEYS).items() if key != "max_iters"}
SIZES = "".join(f"\n[[ladder.sizes]]\nn_embd = {width}" for width in (32, 40, 48, 56, 64))

OVERLAPS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll("figure svg")) {
    const texts = [...svg.querySelectorAll("text")].filter((text) => text.textContent.trim());
    const boxes = texts.map((text) => text.getBoundingClientRect());
    for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length; j++) {
      const [a, b] = [boxes[i], boxes[j]];
      const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (width > 1 && height > 0.35 * Math.min(a.height, b.height))
        found.push([texts[i].textContent, texts[j].textContent]);
    }
  }
  return found;
}"""


TOPMOST = """(point) => {
  const box = point.getBoundingClientRect();
  const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return top.closest("a").getAttribute("xlink:href").replace("#run-", "");
}"""  # the run of what lies over a point, as another seed's may


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """A ladder of stand-ins, which has its page."""
    fake_worker.stand_in(tmp_path, monkeypatch)
    keys = "\n".join(f"{key} = {json.dumps(value)}" for key, value in BASE.items())
    head = '[study]\nname = "toy"\nrecipe = "ladder"\n[base]\n'
    rest = f"\ntokens_per_param = 1\n[ladder]\nseeds = [1, 2]{SIZES}\n"
    Path("s.toml").write_text(head + keys + rest)
    assert main(["study", "s.toml"]) == 0
    return Study.open("experiments_out/toy")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def requests() -> list[str]:
    return []


@pytest.fixture
def page(browser, requests) -> Any:
    """A page that fails the test by any complaint of the browser."""
    page = browser.new_page(viewport={"width": 900, "height": 900})
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    yield page
    assert complaints == []
    page.close()


def address(study: Study) -> str:
    return (study.folder / "report.html").resolve().as_uri()


def test_the_page_asks_for_nothing_and_fits_every_width(study, page, requests):
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(address(study))
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate(OVERLAPS) == []
    assert {*requests} == {address(study)}


def test_a_point_says_its_run_and_leads_to_its_row(study, page):
    page.goto(address(study))
    tip = page.locator(".tip")
    assert not tip.is_visible()
    points = page.locator("figure svg a")
    assert points.count() >= len(study)
    ids = {entry.id for entry in study.entries}
    for place in (0, points.count() - 1):
        points.nth(place).hover(force=True)
        run = points.nth(place).evaluate(TOPMOST)
        assert run in ids
        assert run in tip.inner_text()
        box = tip.bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= 900 - box["width"]
    page.locator("h1").hover()
    assert not tip.is_visible()

    points.last.click(force=True)
    assert page.url.endswith(f"#run-{run}")
    assert page.locator(f"#run-{run}").is_visible()


def test_a_series_can_be_switched_off_and_on(study, page):
    page.goto(address(study))
    figure = page.locator("figure").first
    switches = figure.locator(".switches button")
    name = switches.first.inner_text()
    parts = figure.locator(f'[data-series="{name}"]')
    others = figure.locator(f'[data-series="{switches.last.inner_text()}"]')
    for pressed in ("false", "true"):
        switches.first.click()
        assert switches.first.get_attribute("aria-pressed") == pressed
        shown = [parts.nth(i).is_visible() for i in range(parts.count())]
        assert shown == [pressed == "true"] * parts.count()
        assert others.first.is_visible()


def test_a_click_on_its_head_sorts_a_column_of_numbers(study, page):
    page.goto(address(study))
    table = page.locator("table").last
    heads = table.locator("th").all_inner_texts()
    column = heads.index("val loss")
    table.locator("th").nth(column).click()
    cells = table.locator(f"tbody td:nth-child({column + 1})").all_inner_texts()
    losses = [float(cell) for cell in cells]
    assert len(losses) == len(study)
    assert losses in (sorted(losses), sorted(losses, reverse=True))


def test_without_scripts_nothing_is_missing_and_on_paper_neither(study, page, browser):
    page.goto(address(study))
    page.locator(".switches").evaluate_all("all => all.forEach((one) => one.remove())")
    said = page.locator("main").inner_text()
    bare = browser.new_context(java_script_enabled=False).new_page()
    bare.goto(address(study))
    assert bare.locator("main").inner_text() == said
    page.emulate_media(media="print")
    assert page.locator("main").inner_text() == said
    assert page.pdf().startswith(b"%PDF")


def test_the_live_view_grows_by_itself(study, page, requests):
    _, folder = next(study.runs())
    folder.set_status(state=RUNNING, step=1)
    with server_of(study.folder) as server, folder.take():
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        here = f"http://127.0.0.1:{server.server_port}/"
        page.goto(here)
        assert "1 is running" in page.locator(".law").inner_text()
        folder.set_status(state="COMPLETE")
        page.wait_for_function(
            "() => document.querySelector('main').textContent.includes('none is running')",
            timeout=4e3 * REFRESH_SECONDS,
        )
        assert "ten times the compute lowers" in page.locator(".law").inner_text()
        server.shutdown()
    thread.join()
    assert {*requests} == {here}
