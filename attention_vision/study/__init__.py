"""Studies: ablations over cells and seeds, defined in a file and run in parallel.

`definition` reads and expands a study file; `runner` starts the unfinished runs, each in its own
process, see `worker`.
"""
