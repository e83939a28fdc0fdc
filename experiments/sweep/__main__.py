"""`python -m experiments.sweep`: a grid of runs."""

from experiments.sweep.program import main

if __name__ == "__main__":
    main()
