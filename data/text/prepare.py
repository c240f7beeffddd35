"""Any text of yours, by characters or bytes: a file, or a folder split by document.

Usage: python data/text/prepare.py --input FILE_OR_FOLDER [--kind char|byte] [--out DIR]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoscale.__main__ import main

if __name__ == "__main__":
    folder = Path(__file__).parent
    sys.exit(main(["data", "prepare", "text", f"--out={folder}", *sys.argv[1:]]))
