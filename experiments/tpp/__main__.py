"""`python -m experiments.tpp`: prune whole filters of a trained network, and train what is left."""

from experiments.tpp import program

if __name__ == "__main__":
    program.main()
