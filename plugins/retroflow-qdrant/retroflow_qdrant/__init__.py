"""Qdrant as a retriever for retroflow."""
