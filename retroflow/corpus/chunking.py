"""Cutting a document's tokens into chunks of a fixed length.

Shapes: t tokens of a document, c chunks of a document, m tokens of a chunk.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retroflow.corpus.tokenizer import Encoded


class Chunks(NamedTuple):
    """The chunks of one document, in order.

    Attributes:
        tokens: int32 [c, m]; the last chunk is padded with the end-of-text token.
        lengths: uint16 [c], text tokens of each chunk: m, except in the last one.
        num_bytes: uint32 [c], UTF-8 bytes of each chunk's text; their sum is the document's.
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.uint16]
    num_bytes: NDArray[np.uint32]


def chunk_question(prompt: Encoded, answer: Encoded, *, chunk_length: int, end_of_text: int) -> Chunks:
    """Make two chunks: a question that ends at the end of its chunk, and its answer, which begins the next.

    Args:
        prompt: the question; of one that is too long the last m tokens are kept.
        answer: of one that is too long the first m - 1 tokens are kept, so that its end can be predicted.
        chunk_length: m.
        end_of_text: token that pads both, the question at the left.

    Returns:
        Chunks of m and of up to m - 1 tokens. All bytes are those of the answer.
    """
    question, kept = prompt.ids[-chunk_length:], answer.ids[: chunk_length - 1]
    tokens = np.full((2, chunk_length), end_of_text, dtype=np.int32)
    tokens[0, chunk_length - len(question) :] = question
    tokens[1, : len(kept)] = kept
    whole = len(kept) == len(answer.ids)
    num_bytes = answer.num_bytes if whole else int(answer.byte_starts[len(kept)])
    return Chunks(tokens, np.array([chunk_length, len(kept)], np.uint16), np.array([0, num_bytes], np.uint32))


def chunk_document(encoded: Encoded, *, chunk_length: int, end_of_text: int) -> Chunks:
    """Cut a document into ceil(t / m) chunks.

    A byte-level token may begin in the middle of a character. Its bytes then count for its own chunk, so that nothing
    is counted twice.

    Args:
        encoded: the document, t tokens.
        chunk_length: m, 1 <= m <= 65,535.
        end_of_text: token that pads the last chunk.
    """
    num_tokens = len(encoded.ids)
    starts = np.arange(0, num_tokens, chunk_length)
    tokens = np.full((len(starts), chunk_length), end_of_text, dtype=np.int32)  # [c, m]
    tokens.reshape(-1)[:num_tokens] = encoded.ids
    lengths = np.minimum(num_tokens - starts, chunk_length).astype(np.uint16)
    num_bytes = np.diff(encoded.byte_starts[starts], append=encoded.num_bytes).astype(np.uint32)
    return Chunks(tokens, lengths, num_bytes)
