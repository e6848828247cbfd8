"""From text to chunks: document sources, splits, the tokenizer and chunking."""
