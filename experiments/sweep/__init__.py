"""`python -m experiments.sweep`: a grid of runs."""
