"""Other libraries use a model with its database: transformers, lm-evaluation-harness."""
