"""The site: `make docs` builds docs/_build/html, without a network and without a warning."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from generate import filled  # noqa: E402

from nanoscale import __version__  # noqa: E402
from nanoscale.spec.sources import FIELDS  # noqa: E402

with (ROOT / "pyproject.toml").open("rb") as file:
    HOOK = tomllib.load(file)["tool"]["hatch"]["metadata"]["hooks"]["custom"]
REPOSITORY = HOOK["address"]  # while there is none, nothing of the site refers to it

project = "nanoscale"
copyright = "the nanoscale authors, under the MIT license"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
highlight_language = "none"
smartquotes = False  # `--key` stays as it is typed

# Our docstrings are Google's, with code in backticks.
default_role = "code"
autoclass_content = "class"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 72
toc_object_entries_show_parents = "hide"

# A link that leads nowhere is a warning; of types, those of this page alone have a place.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r".*")]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = "nanoscale"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}
if REPOSITORY:
    html_theme_options = {
        "top_of_page_buttons": ["view"],
        "source_view_link": f"{REPOSITORY}/blob/main/docs/{{filename}}",
    }

# Pages that show a file beside this folder, and where links to those files lead.
SHOWN = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
PAGES = {**{file: f"{page}.md" for page, file in SHOWN.items()}, "README.md": "index.md"}
# Below the page of results, the page of each.
BELOW = {"results/README": "\n```{toctree}\n:hidden:\n:glob:\n*/*\nsoak\n```\n"}
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[#)])")


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """A page as Sphinx is to see it: what is generated in its place, links to pages of the site."""
    written = HERE / f"{page}.md"
    if page in SHOWN:
        written = ROOT / SHOWN[page]
        source[0] = written.read_text(encoding="utf-8")
        app.env.note_dependency(written)

    def led(link: re.Match[str]) -> str:
        target = os.path.normpath(written.parent / link[0])
        of_root = os.path.relpath(target, ROOT)
        target = HERE / PAGES[of_root] if of_root in PAGES else target
        return Path(os.path.relpath(target, (HERE / page).parent)).as_posix()

    source[0] = filled(LINK.sub(led, source[0])) + BELOW.get(page, "")


def mend(app: Sphinx, tree: nodes.document) -> None:
    """Have the search find a key of the config by its name; have dashes be dashes."""
    for text in tree.findall(lambda node: isinstance(node, nodes.Text) and node == " -- "):
        text.parent.replace(text, nodes.Text(" – "))
    place = tree.get("source", "")
    for node in tree.findall(nodes.inline):
        name = node.astext()
        if Path(place).stem == "config" and name in FIELDS and node["ids"]:
            app.env.domains.standard_domain.note_object("confval", name, node["ids"][0], node)


def shortened(signature: str | None) -> str | None:
    """A signature with our own name for an array; a default that is made anew is an ellipsis."""
    array = r"~numpy\.ndarray\[tuple\[~typing\.Any, \.\.\.\], ~numpy\.dtype\[~\w+\.\w+\]\]"
    return signature and re.sub(array, "Array", signature).replace("<factory>", "...")


def shorten(*event: object) -> tuple[str | None, str | None]:
    """Autodoc's signatures, as they are to be read."""
    arguments, returned = event[-2:]
    return shortened(arguments), shortened(returned)


def setup(app: Sphinx) -> None:
    app.connect("source-read", read)
    app.connect("doctree-read", mend)
    app.connect("autodoc-process-signature", shorten)
