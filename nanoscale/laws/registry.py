"""The laws that are known by name: those built in, and a user's own.

A user's file registers them with `register_law`, and `nanoscale fit TABLE --laws=FILE --law=NAME`
fits them as it does ours.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.laws.forms import Law
from nanoscale.laws.published import PUBLISHED

LAWS: dict[str, Law] = {law.name: law for law in PUBLISHED}
BUILT_IN = tuple(LAWS)

_of_files: dict[str, list[str]] = {}  # file -> the laws it registered


def register_law(law: Law) -> Law:
    """Make a law known by its name, to `fit_law` and to `nanoscale fit --law`.

    Raises `UserError` for a name that is taken, or is no plain word.

    >>> from nanoscale.laws import Law, Parameter, register_law
    >>> law = register_law(Law(
    ...     name="no-floor",  # Kaplan et al. 2020, equation 1.3
    ...     predictors=("C",),
    ...     parameters=(Parameter("K", "coefficient"), Parameter("g", "exponent")),
    ...     formula="{K} / C^{g}",
    ...     function=lambda K, g, C: K / C**g,
    ... ))
    >>> law.names
    ('K', 'g')
    """
    if not re.fullmatch(r"[A-Za-z][\w.-]*", law.name):
        raise UserError(f"law {law.name!r}: choose another name, of letters, digits and -_.")
    if law.name in LAWS:
        owner = "is built in" if law.name in BUILT_IN else "is registered already"
        raise UserError(f"law {law.name!r} {owner}; choose another name")
    LAWS[law.name] = law
    return law


def load_laws(path: str | Path) -> list[str]:
    """Run a Python file that registers laws; their names.

    Loaded again, its laws take the place of those that it registered before. Raises `UserError`,
    and registers nothing, for a file that is missing, fails, or registers no law.
    """
    file = str(path)
    known = dict(LAWS)
    for name in _of_files.get(file, []):
        del LAWS[name]
    before = set(LAWS)
    try:
        runpy.run_path(file)
        names = [name for name in LAWS if name not in before]
        if not names:
            raise UserError("registers no law; call nanoscale.laws.register_law(law) in it")
    except Exception as e:
        LAWS.clear()
        LAWS.update(known)
        reason = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        raise UserError(f"laws file {file}: {reason}") from e

    _of_files[file] = names
    return names


def law_of(name: str | Law) -> Law:
    """The law of that name; `UserError` for none."""
    if isinstance(name, Law):
        return name
    if name not in LAWS:
        hint = did_you_mean(name, LAWS) or f"; choose {one_of(LAWS)}"
        raise UserError(f"law {name!r}: no such law{hint}")
    return LAWS[name]
