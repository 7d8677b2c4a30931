"""The verbs of the command line: each module has a function of the same name, which cli.py calls."""
