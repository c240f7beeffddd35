"""TinyStories by GPT-2's tokens, with its own validation split.

Usage: python data/tinystories/prepare.py [--tokens N] [--tokenizer NAME]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoscale.__main__ import main

if __name__ == "__main__":
    folder = Path(__file__).parent
    sys.exit(main(["data", "prepare", "tinystories", f"--out={folder}", *sys.argv[1:]]))
