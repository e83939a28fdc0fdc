"""Several processes: workers beside one another, and one run by many."""
