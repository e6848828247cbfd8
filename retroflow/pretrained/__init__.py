"""Pretrained models that retrieve: bases, RETRO-fits, and reading by a model's own attention.

Importing this package loads nothing; `retroflow.pretrained.retrofit` loads torch and transformers.
"""
