"""The verbs of the command line: each module has one public function of its name, which cli.py calls."""
