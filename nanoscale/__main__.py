"""`python -m nanoscale`: the same as the command `nanoscale`."""

import sys

from nanoscale.commands.main import main

sys.exit(main())
