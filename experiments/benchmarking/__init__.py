"""What `python -m experiments.benchmark` is made of.

`cases` lists what is timed; `ours` and `torch_side` do it, each in a process of its own (`worker`);
`measure` has them take turns; `summaries` turns times into ratios and rates; `results` and
`picture` show them.
"""
