"""RETRO-fitting: add retrieval to Hugging Face causal language models.

Importing this package loads nothing; `retroflow.integrations.retrofit` loads torch and transformers.
"""
