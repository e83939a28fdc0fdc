"""`python -m experiments.sweep`: a grid of runs."""

from experiments.sweep import program

if __name__ == "__main__":
    program.main()
