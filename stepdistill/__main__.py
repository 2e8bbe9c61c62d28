"""`python -m stepdistill` is the console script."""

from stepdistill.cli import main

main()
