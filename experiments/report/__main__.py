"""`python -m experiments.report`: one page about many runs."""

import sys

from experiments.report.program import main

if __name__ == "__main__":
    sys.exit(main())
