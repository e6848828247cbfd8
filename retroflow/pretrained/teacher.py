"""What a frozen base teaches what reads for it: its own distributions.

Where neighbours are random, reading is to change nothing, and the target is the base without them. On one chunk of each
sequence the target is also the base with the same neighbours in its prompt (context distillation; CEPED of Yen et al.
2024 has such a term):

    L = 1/n sum_t [-log p(x_t) or KL(base(. | x) || p)] + weight / m sum_{t of a chunk} KL(base(. | neighbours, x) || p)

Shapes: b sequences, n tokens of a sequence, m tokens of a chunk, l = n / m chunks, v vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retroflow.model.loss import IGNORED, token_losses
from retroflow.pretrained.retrofit import RetrofitModel


@dataclass(frozen=True)
class Lesson:
    """What is taught of a batch.

    Attributes:
        is_random: bool [b, l], True where the base without neighbours is the target; None for nowhere.
        chunks: of each sequence the chunk, from 1, that is taught by a base with neighbours in its prompt; or none.
        prompts: int64 [t] each, whose last m positions predict that chunk.
        weight: of the latter.
    """

    is_random: Tensor | None
    chunks: list[int]
    prompts: list[Tensor]
    weight: float


def taught_loss(model: RetrofitModel, targets: Tensor, batch: Any, lesson: Lesson) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss and what the base teaches.

    Args:
        model: whose base is frozen.
        targets: int64 [b, n], -100 where nothing is predicted.
        batch: its `tokens`, `retrieved` and `retrieved_mask`, as in `RetrofitModel.forward`.
        lesson: what is taught.

    Returns:
        The nats summed over the positions that no teacher took over; the divergence from the teachers, per position;
        and the targets of the former, int64 [b, n].
    """
    m, output = model.config.chunk_length, model.output_weights()
    hidden = model.hidden(batch.tokens, batch.retrieved, batch.retrieved_mask)
    taught = hidden.new_zeros(())
    is_taken = torch.zeros_like(targets, dtype=torch.bool)
    if lesson.is_random is not None:
        # Position t reads what was found for chunk (t + 1) / m - 1.
        is_taken[:, m - 1 :] = lesson.is_random.repeat_interleave(m, dim=1)[:, : targets.shape[1] - m + 1]
        is_taken &= targets != IGNORED
        if is_taken.any():
            with torch.no_grad():
                alone = model.hidden(batch.tokens)
            taught = taught + divergence(hidden[is_taken], alone[is_taken], output).sum() / targets.numel()
    for row, (chunk, prompt) in enumerate(zip(lesson.chunks, lesson.prompts, strict=True)):
        places = slice(chunk * m - 1, (chunk + 1) * m - 1)
        learns = (targets[row, places] != IGNORED) & ~is_taken[row, places]
        if learns.any():
            with torch.no_grad():
                prompted = model.hidden(prompt[None])[0, -m:]
            nats = divergence(hidden[row, places][learns], prompted[learns], output).sum()
            taught = taught + lesson.weight * nats / (m * len(lesson.chunks))
    targets = targets.masked_fill(is_taken, IGNORED)
    nats = token_losses(hidden.flatten(0, 1), output, targets.flatten()).sum()
    return nats, taught, targets


def divergence(hidden: Tensor, teacher: Tensor, output: Tensor) -> Tensor:
    """Return KL(teacher || own) in nats, float [t], of next tokens.

    Args:
        hidden: float [t, d], own last hidden states.
        teacher: float [t, d], those of the teacher.
        output: float [v, d], the output matrix of both.
    """
    dtype = torch.float64 if output.dtype == torch.float64 else torch.float32
    own, wanted = (F.linear(each, output).to(dtype).log_softmax(-1) for each in (hidden, teacher.detach()))
    return F.kl_div(own, wanted, reduction="none", log_target=True).sum(-1)
