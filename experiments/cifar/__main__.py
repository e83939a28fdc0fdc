"""`python -m experiments.cifar`: prune a network before training, and train what is left."""

from experiments.cifar.program import main

if __name__ == "__main__":
    main()
