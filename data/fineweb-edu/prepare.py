"""FineWeb-Edu (its sample of 10 B tokens), by GPT-2's tokens.

Usage: python data/fineweb-edu/prepare.py [--tokens N] [--config NAME]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoscale.__main__ import main

if __name__ == "__main__":
    folder = Path(__file__).parent
    sys.exit(main(["data", "prepare", "fineweb-edu", f"--out={folder}", *sys.argv[1:]]))
