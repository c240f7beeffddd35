"""tinyshakespeare by characters: 65 symbols, 1,003,854 training and 111,540 validation tokens.

Usage: python data/shakespeare_char/prepare.py [--input FILE]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoscale.__main__ import main

if __name__ == "__main__":
    folder = Path(__file__).parent
    sys.exit(main(["data", "prepare", "shakespeare_char", f"--out={folder}", *sys.argv[1:]]))
