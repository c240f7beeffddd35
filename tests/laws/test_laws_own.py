"""A user's own law: registered by name, from a file, and never in the place of another."""

from __future__ import annotations

import doctest
import importlib
import math
from dataclasses import replace

import numpy as np
import pytest

from nanoscale.errors import UserError
from nanoscale.laws import LAWS, Law, Parameter, fit_law, law_of, load_laws, register_law, registry

TOY = """
from nanoscale.laws import Law, Parameter, register_law

register_law(Law(
    name="toy",
    predictors=("C",),
    parameters=(Parameter("K", "coefficient"), Parameter("g", "exponent")),
    formula="{K} / C^{g}",
    function=lambda K, g, C: K / C**g,
))
"""


@pytest.fixture(autouse=True)
def _laws_of_its_own(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "LAWS", {name: LAWS[name] for name in registry.BUILT_IN_LAWS})
    monkeypatch.setattr(registry, "_files", {})


def toy(name="toy"):
    return Law(
        name=name,
        predictors=("C",),
        parameters=(Parameter("K", "coefficient"), Parameter("g", "exponent")),
        formula="{K} / C^{g}",
        function=lambda K, g, C: K / C**g,
    )


def test_a_registered_law_is_fitted_by_its_name():
    law = register_law(toy())
    C = np.geomspace(1e13, 1e16, 8)
    found = fit_law({"C": C}, 40 * C**-0.08, law="toy", resamples=0)
    assert law_of("toy") is law
    assert found.params == pytest.approx({"K": 40.0, "g": 0.08}, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("chinchilla", "law 'chinchilla' is built in; choose another name"),
        ("toy", "law 'toy' is registered already; choose another name"),
        ("to y", "law 'to y': choose another name, of letters, digits and -_."),
    ],
)
def test_a_law_takes_no_name_that_has_an_owner(name, says):
    first = register_law(toy())
    with pytest.raises(UserError) as error:
        register_law(replace(first, name=name))
    assert str(error.value) == says
    assert law_of("toy") is first
    assert law_of("chinchilla") is LAWS["chinchilla"]


def test_a_file_of_laws_is_loaded_by_name_and_anew_when_it_was_edited(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(TOY)
    assert load_laws(file) == ["toy"]
    assert law_of("toy").names == ("K", "g")
    file.write_text(
        TOY.replace('"g"', '"slope"')
        .replace("{g}", "{slope}")
        .replace("g, C", "slope, C")
        .replace("**g", "**slope")
    )
    assert load_laws(str(file)) == ["toy"]
    assert law_of("toy").names == ("K", "slope")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "registers no law; call nanoscale.laws.register_law(law) in it"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (TOY + "\nimport of_no_kind", "ModuleNotFoundError: No module named 'of_no_kind'"),
        ("def f(:", "SyntaxError: "),
        ("raise GeneratorExit('no')", "GeneratorExit: no"),
        (TOY.replace('"toy"', '"kaplan"'), "law 'kaplan' is built in; choose another name"),
        (None, "no such file"),
    ],
)
def test_a_broken_file_of_laws_is_refused_in_one_line_and_registers_nothing(text, says, tmp_path):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    before = dict(registry.LAWS)
    with pytest.raises(UserError) as error:
        load_laws(file)
    assert str(error.value).startswith(f"laws file {file}: {says}")
    assert "\n" not in str(error.value)
    assert before == registry.LAWS


@pytest.mark.parametrize("module", ["fit", "registry"])
def test_the_examples_of_docstrings_run(module):
    results = doctest.testmod(importlib.import_module(f"nanoscale.laws.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("{Z} / C^{g}", "law toy: formula '{Z} / C^{g}' names {Z}; it has 'K', 'g' or 'C'"),
        ("{} / C^{g}", "law toy: formula '{} / C^{g}' names {}; it has 'K', 'g' or 'C'"),
        ("{K / C", "law toy: formula '{K / C': expected '}' before end of string"),
    ],
)
def test_a_formula_names_what_the_law_has(formula, says):
    with pytest.raises(UserError) as error:
        register_law(replace(toy(), formula=formula))
    assert str(error.value) == says


def test_a_function_that_is_finite_nowhere_is_said_to_be():
    C = np.geomspace(1e13, 1e16, 8)
    law = replace(toy(), function=lambda K, g, C: K * C * math.nan)
    with pytest.raises(UserError, match="law toy: at none of its 6 starts does its function"):
        fit_law({"C": C}, 40 * C**-0.08, law=law, resamples=0)
