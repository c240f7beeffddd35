"""A Markov chain of exactly known entropy, which no model's loss can be below.

Usage: python data/synthetic/prepare.py [--seed N]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoscale.__main__ import main

if __name__ == "__main__":
    folder = Path(__file__).parent
    sys.exit(main(["data", "prepare", "synthetic", f"--out={folder}", *sys.argv[1:]]))
