"""The front door: `import nanoscale as ns` is light, and every public name does what it shows."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re

import pytest
from tiny import PACKAGE, run_python

import nanoscale as ns

NAMES = [name for name in ns.__all__ if name != "__version__"]
PROMISED = (
    "ExperimentConfig load_config train GPT Muon ExperimentRunner Study run_study read_table "
    "fit_law plan compare transfer coord_check register_scheme register_law register_recipe "
    "register_backend __version__"
).split()


def test_what_is_promised_is_there():
    assert set(PROMISED) <= set(ns.__all__)
    assert dir(ns) == sorted(ns.__all__)


def test_the_import_loads_neither_torch_nor_numpy():
    code = "import sys, nanoscale; print({'torch', 'numpy', 'pandas', 'click'} & set(sys.modules))"
    assert run_python("-c", code).stdout == "set()\n"


def test_types_and_places_name_the_same():
    """What a type checker sees is what is loaded."""
    text = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    typed = text.split("if TYPE_CHECKING:", 1)[1].split("__version__", 1)[0]
    seen = {}
    for module, names in re.findall(r"from nanoscale\.([\w.]+) import (.+)", typed):
        for name in names.split(", "):
            theirs, _, ours = name.partition(" as ")
            seen[ours or theirs] = (module, theirs)
    assert seen == ns._PLACES


def test_no_public_name_is_a_folder_or_a_module_of_the_root():
    taken = {path.stem for path in PACKAGE.iterdir()}
    assert not taken & set(NAMES)


def test_every_name_is_callable_after_everything_has_been_imported():
    """A module of a public name would take its place in the package."""
    before = {name: getattr(ns, name) for name in NAMES}
    for file in PACKAGE.rglob("*.py"):
        name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        if file.stem not in ("__main__", "bench_peer"):
            importlib.import_module(name.removesuffix(".__init__"))
    for name, value in before.items():
        assert callable(getattr(ns, name))
        assert getattr(ns, name) is value


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        ns.trian  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_name_runs(name, tmp_path, monkeypatch):
    """Each docstring shows the name at work, in an empty folder, and can be copied."""
    monkeypatch.chdir(tmp_path)
    value = getattr(ns, name)
    text = inspect.getdoc(value) or ""
    examples = doctest.DocTestParser().get_examples(text)
    if name == "UserError":
        assert text
        return
    assert any(
        re.search(rf"\b({name}|{value.__name__})\b", example.source) for example in examples
    ), text
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTest(examples, {"__name__": name}, name, None, None, text)
    runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
    lines: list[str] = []
    runner.run(test, out=lines.append)
    assert runner.failures == 0, "".join(lines)
