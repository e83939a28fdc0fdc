"""`python -m experiments.benchmark`: our steps timed against PyTorch's."""

import sys

from experiments.benchmark.program import main

if __name__ == "__main__":
    sys.exit(main())
