"""`retroflow`, as its console script runs it, from wherever the tests' interpreter finds it."""

import signal

from retroflow.cli.main import main

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as from a terminal; tests that run under nohup hand on an ignored one
main()
