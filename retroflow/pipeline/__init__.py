"""From a recipe to artifacts on disk: chunks, embeddings, index, neighbours."""
