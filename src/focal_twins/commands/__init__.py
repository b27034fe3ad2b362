"""Holds the commands: a module for each, whose `main` takes the arguments and may return an exit code.

`focal-twins NAME` runs them (focal_twins/__main__.py), and so do the programs of the repository: train.py, eval.py,
export.py and those of the same purpose in scripts/. They import inside their functions what imports MindSpore, as
focal_twins/cli.py says.
"""
