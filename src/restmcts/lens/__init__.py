"""A value model under the lens: what it says of solutions whose truth is known.

scoring.py        values of given trees, asked for once and kept
processbench.py   does it see which step is the first wrong one?
bestofn.py        what is it worth for choosing among N samples?
measure.py        both of these, and error, ranking and calibration on trees; the stage and its files
show.py           tables
"""
