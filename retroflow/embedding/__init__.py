"""Embedders turn text into vectors. `bert` is the paper's choice, `lexical` needs no weights."""
