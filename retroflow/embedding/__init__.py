"""Embedders: text in, vectors out. `bert` is the faithful one, `lexical` needs no weights."""
