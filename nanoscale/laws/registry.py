"""The laws that are known by name: those built in, and a user's own.

A user's file registers them with `register_law`, and `nanoscale fit TABLE --laws=FILE --law=NAME`
fits them as it does ours.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from nanoscale.errors import UserError, guarded, nearest_or_all, registered_in
from nanoscale.laws.forms import Law
from nanoscale.laws.published import PUBLISHED

LAWS: dict[str, Law] = {law.name: law for law in PUBLISHED}
BUILT_IN_LAWS = tuple(LAWS)


@dataclass(frozen=True)
class LawsFile:
    """What a user's file was when it was loaded, and the laws that it registered."""

    digest: str
    names: list[str]


_files: dict[str, LawsFile] = {}  # by their paths


def register_law(law: Law) -> Law:
    """Make a law known by its name, to `fit_law` and to `nanoscale fit --law`.

    Raises `UserError` for a name that is taken, or is no plain word, and for a formula that names
    what the law does not have.

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
        owner = "is built in" if law.name in BUILT_IN_LAWS else "is registered already"
        raise UserError(f"law {law.name!r} {owner}; choose another name")
    law.check_formula()
    known = replace(law, function=guarded(law.function, f"law {law.name!r}"))
    LAWS[law.name] = known
    return known


def load_laws(path: str | Path) -> list[str]:
    """Run a Python file that registers laws; their names.

    Loaded again, its laws take the place of those that it registered before. Raises `UserError`,
    and registers nothing, for a file that is missing, fails, or registers no law.
    """
    file = str(path)
    earlier = {name: LAWS.pop(name) for name in _files[file].names} if file in _files else {}
    how = "registers no law; call nanoscale.laws.register_law(law) in it"
    try:
        found = registered_in(file, LAWS, f"laws file {file}", how)
    except UserError:
        LAWS.update(earlier)
        raise
    LAWS.update(found)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    _files[file] = LawsFile(digest, list(found))
    return list(found)


def digest_of(name: str) -> str | None:
    """16 hex digits of the SHA-256 of the file that registered a law; None where no file did."""
    for file in _files.values():
        if name in file.names:
            return file.digest
    return None


def law_of(name: str | Law) -> Law:
    """The law of that name; `UserError` for none."""
    if isinstance(name, Law):
        return name
    if name not in LAWS:
        raise UserError(f"law {name!r}: no such law{nearest_or_all(name, LAWS)}")
    return LAWS[name]
