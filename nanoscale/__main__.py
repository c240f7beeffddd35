"""`python -m nanoscale`: the same as the command `nanoscale`."""

import sys

from nanoscale.cli import main

sys.exit(main())
