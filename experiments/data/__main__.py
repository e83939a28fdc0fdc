"""`python -m experiments.data`: what is there, and how to get the rest."""

from experiments.data.program import main

if __name__ == "__main__":
    main()
