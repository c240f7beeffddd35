"""OpenWebText by GPT-2's tokens, split as nanoGPT splits it: 9,035,582,198 and 4,434,897 tokens.

Usage: python data/openwebtext/prepare.py [--tokens N] [--input FOLDER]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoscale.__main__ import main

if __name__ == "__main__":
    folder = Path(__file__).parent
    sys.exit(main(["data", "prepare", "openwebtext", f"--out={folder}", *sys.argv[1:]]))
