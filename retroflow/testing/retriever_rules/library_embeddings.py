"""Real embeddings that every machine can make: chunks of Python's standard library, by the lexical embedder."""

import sysconfig
from pathlib import Path

from retroflow.embedding.lexical import LexicalEmbedder
from retroflow.protocols import Float32Array

CHUNK_CHARACTERS = 250


def library_embeddings(num_chunks: int = 1_500, dimension: int = 64) -> Float32Array:
    """Embed the first chunks of the library's modules; float32 [num_chunks, dimension] of length 1."""
    text = ""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += path.read_text(encoding="utf-8", errors="replace")
        if len(text) >= num_chunks * CHUNK_CHARACTERS:
            break
    chunks = [text[at : at + CHUNK_CHARACTERS] for at in range(0, len(text), CHUNK_CHARACTERS)][:num_chunks]
    embedder = LexicalEmbedder(dimension=dimension, buckets=2**14)
    embedder.fit(chunks)
    return embedder.embed(chunks)
