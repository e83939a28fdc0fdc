"""`python -m experiments.cifar`: prune a network before training, and train what is left."""
