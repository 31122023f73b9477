"""`python -m saeflow` is `saeflow`."""

from saeflow.cli import main

main()
