"""`python -m experiments.benchmark`: our steps timed against PyTorch's."""

import sys

from experiments.benchmark import program

if __name__ == "__main__":
    sys.exit(program.main())
