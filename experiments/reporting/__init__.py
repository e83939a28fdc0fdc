"""What `python -m experiments.report` is made of; each module needs only those above it.

    runs.py         run folders -> runs
    setups.py       runs -> sections of one set-up, lines of one criterion, cells of one density
    numbers.py      cells -> means, deviations, who is ahead
    comparison.py   what is published, and whether it was measured in the same set-up
    tables.py       sections -> tables, Markdown, CSV
    drawing.py      colours, themes and axes that all pictures share
    accuracy.py     accuracy against density, ours and published
    layers.py       what the masks keep: layers, channels, cost
    spectra.py      eigenvalues of the NTK
    page.py         pieces of an HTML page
    gallery.py      all pictures of a section
    text.py         all words of the report

Pictures are drawn twice, for light and for dark screens.
"""
