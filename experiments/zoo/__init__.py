"""Public models of other people's packages, pruned, trained and shrunk as a user would."""
