"""`python -m nanoscale`, the same as the command, and what the scripts beside the package call."""

import sys

from nanoscale.errors import exit_code_of


def main(*first: str) -> int:
    """Run a verb, its first words and then those that were typed; the exit code."""

    def verb() -> int:
        from nanoscale.commands.main import dispatch  # of packages that may not be there

        return dispatch([*first, *sys.argv[1:]])

    return exit_code_of(verb)


if __name__ == "__main__":
    sys.exit(main())
