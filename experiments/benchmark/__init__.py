"""`python -m experiments.benchmark`: our steps timed against PyTorch's."""
