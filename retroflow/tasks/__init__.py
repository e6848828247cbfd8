"""Tasks: cloze accuracy, open-domain question answering, and training for them."""
