"""`python -m experiments.cifar`: prune a network before training, and train what is left."""

from experiments.cifar import program

if __name__ == "__main__":
    program.main()
