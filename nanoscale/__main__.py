"""The command, also as `python -m nanoscale` and as the scripts beside the package."""

import sys
from collections.abc import Sequence

from nanoscale.errors import exit_code_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb, by what was typed unless `arguments` are given; the exit code."""

    def verb() -> int:
        from nanoscale.commands.main import dispatch  # of packages that may not be there

        return dispatch(sys.argv[1:] if arguments is None else arguments)

    return exit_code_of(verb)


if __name__ == "__main__":
    sys.exit(main())
