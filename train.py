"""Train one GPT: python train.py [config.py ...] [--key=value ...]

torchrun --standalone --nproc_per_node=2 train.py ... trains on several processes.
"""

import sys

from nanoscale.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
