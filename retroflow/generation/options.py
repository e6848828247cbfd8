"""How text is generated: one dataclass, checked where it is made."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, MinLen

from retroflow.generation.arguments import ArgumentError, Problem
from retroflow.options import Seed, checked_options

LEAST_TEMPERATURE = 1e-6
"""Logits divided by less would overflow in float32."""


@checked_options("", error=ArgumentError.of_complaints)
@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of generation.

    Attributes:
        max_new_tokens: maximum number of tokens added to a prompt.
        temperature: 0 takes the most likely token; above 0 logits are divided by it and a token is drawn.
        top_k: draw from the k most likely tokens only; 0 for all.
        top_p: draw from the smallest set of most likely tokens with at least this total probability; 1 for all.
        repetition_penalty: above 1, tokens of the prompt and of the text so far become less likely: their logits are
            divided (positive ones) or multiplied (negative ones) by it (Keskar et al. 2019, arXiv:1909.05858, section
            4.1); 1 changes nothing.
        stop: text that ends a generation; neither it nor what follows is part of the answer.
        stop_at_end_of_text: end a generation at the tokenizer's end-of-text token. Otherwise it is treated like any
            other token, and left out of the text.
        num_neighbours: chunks retrieved per window (k).
        retrieval_step: tokens between two retrievals (s), 1 to the model's chunk length; by default the chunk length,
            as in the paper. Smaller is slower and more up to date.
        align: pad prompts at the left so that a window ends where the prompt ends, and neighbours are used at once.
            Otherwise nothing is retrieved before the first whole chunk.
        seed: prompt i draws from seed + i, so it gives the same text alone with that seed.
        batch_size: maximum number of prompts computed together; affects only speed and memory.

    Raises:
        ArgumentError: a value has a wrong type or is out of range; the message lists all of them.
    """

    max_new_tokens: Annotated[int, Ge(1)] = 128
    temperature: Annotated[float, Ge(0)] = 0.0
    top_k: Annotated[int, Ge(0)] = 0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    repetition_penalty: Annotated[float, Gt(0)] = 1.0
    stop: tuple[Annotated[str, MinLen(1)], ...] = ()
    stop_at_end_of_text: bool = True
    num_neighbours: Annotated[int, Ge(1)] = 2
    retrieval_step: Annotated[int, Ge(1)] | None = None
    align: bool = True
    seed: Seed = 0
    batch_size: Annotated[int, Ge(1)] = 8

    def __post_init__(self) -> None:
        unused = [name for name, off in (("top_k", 0), ("top_p", 1)) if getattr(self, name) != off]
        problems = []
        if 0 < self.temperature < LEAST_TEMPERATURE:
            allowed = f"0 (the most likely token) or a number of at least {LEAST_TEMPERATURE}"
            problems.append(Problem("temperature", f"is {self.temperature}; allowed: {allowed}."))
        if self.temperature == 0:
            text = "has no effect at temperature 0; give a temperature above 0."
            problems += [Problem(name, f"is {getattr(self, name)}; it {text}") for name in unused]
        if problems:
            raise ArgumentError(problems)

    def step_for(self, chunk_length: int) -> int:
        """Return the retrieval step for a model of this chunk length.

        Raises:
            ArgumentError: it is longer than the chunk.
        """
        step = chunk_length if self.retrieval_step is None else self.retrieval_step
        if step > chunk_length:
            text = f"is {step}; allowed: a whole number from 1 to {chunk_length}, the model's chunk length."
            raise ArgumentError([Problem("retrieval_step", text)])
        return step
