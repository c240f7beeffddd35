"""The Python source on this machine, by bytes: standard library and installed packages, offline.

Usage: python data/pysource/prepare.py [--out DIR]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoscale.__main__ import main

if __name__ == "__main__":
    folder = Path(__file__).parent
    sys.exit(main(["data", "prepare", "pysource", f"--out={folder}", *sys.argv[1:]]))
