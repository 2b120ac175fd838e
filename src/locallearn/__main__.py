"""``python -m locallearn`` is the command line."""

from locallearn.cli.main import program

program()
