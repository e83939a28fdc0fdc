"""`python -m experiments.report`: one page about many runs."""
