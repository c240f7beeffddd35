"""Generate text from a trained run: python sample.py [config.py ...] [--key=value ...]

python sample.py --out_dir=out-shakespeare-char --start="ROMEO:" --num_samples=3
"""

import sys

from nanoscale.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
