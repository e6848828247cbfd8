"""`retroflow`, as its console script runs it, from wherever the tests' interpreter finds it."""

from retroflow.cli.main import main

main()
