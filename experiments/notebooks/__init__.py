"""Notebooks: `NAME.py` is the source (jupytext's percent format), `NAME.ipynb` is made of it."""
