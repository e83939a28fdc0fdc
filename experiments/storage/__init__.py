"""What every program writes: run folders, files written as a whole, and locks."""
