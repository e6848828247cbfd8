"""Stub."""

def load(path, overrides, *, schema):
    raise NotImplementedError
