"""`python -m experiments.tpp`: prune whole filters of a trained network, and train what is left."""
