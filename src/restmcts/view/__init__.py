"""Looking at runs: a local web page over a run folder, and the same as one file.

    sets.py      which trees a folder holds
    index.py     where each tree begins in a growing file, and what the table of questions says of it
    detail.py    one tree with its labels and the prompt that was asked
    overview.py  the numbers of a run, as plots and tables want them
    viewer.py    all of that together: what the page asks for
    server.py    the same over HTTP, read-only
    page.py      the page itself; as one file, for sending around
    static/      its style and its scripts, and Temml, which renders formulas

Everything is read from the run folder's files, also while the run is going; nothing is written there.
"""
