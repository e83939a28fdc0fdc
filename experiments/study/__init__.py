"""`python -m experiments.study`: is one criterion better than another?"""
