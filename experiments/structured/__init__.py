"""What `python -m experiments.tpp` is made of: pruning of whole filters, stage by stage."""
