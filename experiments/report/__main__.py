"""`python -m experiments.report`: one page about many runs."""

import sys

from experiments.report import program

if __name__ == "__main__":
    sys.exit(program.main())
