"""Studies: a question as a file, its runs in parallel.

`definition` reads and expands a study file; `runner` runs what is not finished, each run in a
process that `worker` describes.
"""
