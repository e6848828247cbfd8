"""The command line: one file per command, without logic. Start at main.py."""
