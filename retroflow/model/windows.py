"""When neighbours are looked up: the windows of a sequence, and which of them a position reads.

A window is the m tokens that a query is made of. With the paper's retrieval step s = m the windows are the chunks;
generation may look up more often (s < m; Wang et al. 2023, arXiv:2304.06762, section 3). Window w ends when
T(w) = m + w * s tokens are known, and position t reads the newest window with T(w) <= t + 1.

Shapes: b batch, n tokens of a sequence, m tokens of a chunk, s tokens between two lookups, W windows, d features.
"""

from torch import Tensor

from retroflow.errors import InvalidShapeError


def num_windows(length: int, chunk_length: int, step: int) -> int:
    """Count the windows that `length` tokens complete.

    Args:
        length: n.
        chunk_length: m.
        step: s, 1 to m.
    """
    return 0 if length < chunk_length else (length - chunk_length) // step + 1


def windows_of(x: Tensor, chunk_length: int, step: int) -> Tensor:
    """Cut a sequence into its complete windows, which overlap where the step is below m.

    Args:
        x: [b, n] or [b, n, d], any dtype.
        chunk_length: m.
        step: s, 1 to m.

    Returns:
        A view of x, [b, W, m] or [b, W, m, d].
    """
    count = num_windows(x.shape[1], chunk_length, step)
    if step == chunk_length:
        return x[:, : count * chunk_length].unflatten(1, (count, chunk_length))
    return x.unfold(1, chunk_length, step).movedim(-1, 2)


def checked_step(step: int | None, chunk_length: int) -> int:
    """Return the retrieval step in tokens, the chunk length if none is given.

    Args:
        step: s, or None.
        chunk_length: m.

    Raises:
        InvalidShapeError: it is not between 1 and the chunk length.
    """
    if step is None:
        return chunk_length
    if not isinstance(step, int) or not 1 <= step <= chunk_length:
        raise InvalidShapeError(
            f"retrieval_step is {step}; allowed: a whole number from 1 to {chunk_length}, the chunk length. After a "
            "longer step some tokens would be in no query."
        )
    return step
