"""`python -m stepdistill` is the console script."""

from stepdistill.cli.main import main

main()
