"""Models of other libraries as ours: RETRO-fitting of Hugging Face causal language models.

Importing this package loads nothing; `retroflow.integrations.retrofit` loads torch and transformers.
"""
