"""The RETRO model in plain torch: config, layers, attention, chunked cross-attention, encoder, decoder, loss.

Importing this package loads nothing; `from retroflow.model.retro import Retro` loads torch and nothing else.
"""
