"""`python -m experiments.tpp`: prune whole filters of a trained network, and train what is left."""

from experiments.tpp.program import main

if __name__ == "__main__":
    main()
