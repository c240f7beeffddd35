"""Time the training step: python bench.py [config.py ...] [--key=value ...]

--peer=PATH times a nanoGPT clone's step at the same shapes, in alternation with ours.
"""

import sys

from nanoscale.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
