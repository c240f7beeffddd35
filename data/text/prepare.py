"""Any text of yours: a file, a folder split by document, or rows of Parquet and JSON lines.

Usage: python data/text/prepare.py --input PATH [--tokenizer NAME] [--column NAME] [--out DIR]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoscale.__main__ import main

if __name__ == "__main__":
    folder = Path(__file__).parent
    sys.exit(main(["data", "prepare", "text", f"--out={folder}", *sys.argv[1:]]))
