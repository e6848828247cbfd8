"""`python -m retroflow`: the same as `retroflow`, where scripts are not on the path."""

from retroflow.cli.main import main

if __name__ == "__main__":
    main()
