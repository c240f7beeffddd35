"""tinyshakespeare by GPT-2's tokens: 301,966 of training and 36,059 of validation.

Usage: python data/shakespeare/prepare.py [--input FILE]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoscale.__main__ import main

if __name__ == "__main__":
    folder = Path(__file__).parent
    sys.exit(main(["data", "prepare", "shakespeare", f"--out={folder}", *sys.argv[1:]]))
