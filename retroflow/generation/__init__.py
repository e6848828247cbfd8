"""Generate text with a trained model: live retrieval, sampling, streaming, and the sources of every chunk."""

from retroflow.generation.database import RetrievalDatabase
from retroflow.generation.decoding import generate, stream
from retroflow.generation.options import GenerationOptions
from retroflow.generation.retrieved import LiveRetriever, Retrieval, Retrieved, Source
from retroflow.generation.rows import Generation, Piece

__all__ = [
    "Generation",
    "GenerationOptions",
    "LiveRetriever",
    "Piece",
    "Retrieval",
    "RetrievalDatabase",
    "Retrieved",
    "Source",
    "generate",
    "stream",
]
