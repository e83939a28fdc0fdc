"""`python -m experiments.study`: is one criterion better than another?"""

from experiments.study.program import main

if __name__ == "__main__":
    main()
