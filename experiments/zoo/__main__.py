"""`python -m experiments.zoo`: public models of other packages, pruned, trained and shrunk."""

import sys

from experiments.zoo.program import main

if __name__ == "__main__":
    sys.exit(main())
