"""How text is generated: one dataclass, checked where it is made."""

from dataclasses import dataclass

from retroflow.generation.arguments import ArgumentError, Problem
from retroflow.model.field_types import fit_fields

LEAST_TEMPERATURE = 1e-6
"""Logits divided by less would overflow in float32."""

_LEAST = {"max_new_tokens": 1, "top_k": 0, "num_neighbours": 1, "seed": 0, "batch_size": 1}


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of generation.

    Attributes:
        max_new_tokens: most tokens added to a prompt.
        temperature: 0 takes the likeliest token (greedy); above 0 logits are divided by it and a token is drawn.
        top_k: draw from the k likeliest tokens only; 0 for all.
        top_p: draw from the smallest set of likeliest tokens that has at least this probability, the token that
            crosses it included; 1 for all.
        repetition_penalty: logits of tokens that the prompt or the text has already are divided (positive ones) or
            multiplied (negative ones) by it; 1 changes nothing (Keskar et al. 2019, arXiv:1909.05858, section 4.1).
        stop: texts that end a generation; neither they nor what follows is part of the text.
        stop_at_end_of_text: the tokenizer's end-of-text token ends a generation; if not, it is chosen as any other
            and left out of the text.
        num_neighbours: chunks that are retrieved for a window (k).
        retrieval_step: tokens between two retrievals (s), 1 to the model's chunk length; None is the chunk length, as
            in the paper.
        align: pad prompts at the left so that each ends where a window ends and is answered with neighbours at once.
            Without it nothing is retrieved before the first chunk_length tokens are known.
        seed: row i of the prompts draws from seed + i, so it is the same alone with that seed.
        batch_size: most prompts computed together; changes speed and memory only.

    Raises:
        ArgumentError: a value of a wrong type or out of its range; all that are, what is allowed for each.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_at_end_of_text: bool = True
    num_neighbours: int = 2
    retrieval_step: int | None = None
    align: bool = True
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        lines = (line.partition(": ") for line in fit_fields(self, where=""))
        unfit = [Problem(name, text) for name, _, text in lines]
        problems = unfit or [*self._number_problems(), *self._stop_problems()]
        if problems:
            raise ArgumentError(problems)

    def step_for(self, chunk_length: int) -> int:
        """The retrieval step for a model of this chunk length.

        Raises:
            ArgumentError: it is longer than the chunk.
        """
        step = chunk_length if self.retrieval_step is None else self.retrieval_step
        if step > chunk_length:
            text = f"{step} given; 1 to {chunk_length} (the model's chunk length) are allowed."
            raise ArgumentError([Problem("retrieval_step", text)])
        return step

    def _number_problems(self) -> list[Problem]:
        wrong = [
            (name, f"a whole number of at least {least} is needed")
            for name, least in _LEAST.items()
            if getattr(self, name) < least
        ]
        if self.retrieval_step is not None and self.retrieval_step < 1:
            wrong.append(("retrieval_step", "1 to the model's chunk length are allowed"))
        if not (self.temperature == 0 or self.temperature >= LEAST_TEMPERATURE):
            wrong.append(("temperature", f"0 (the likeliest token) or a number from {LEAST_TEMPERATURE} on is needed"))
        if not 0 < self.top_p <= 1:
            wrong.append(("top_p", "a probability above 0, up to 1, is needed"))
        if self.repetition_penalty <= 0:
            wrong.append(("repetition_penalty", "a positive number is needed; above 1 repeats less"))
        if self.temperature == 0 and not wrong:
            unused = [name for name, off in (("top_k", 0), ("top_p", 1)) if getattr(self, name) != off]
            wrong += [(name, "at temperature 0 it has no effect; give a temperature above 0") for name in unused]
        return [Problem(name, f"{getattr(self, name)} given; {allowed}.") for name, allowed in wrong]

    def _stop_problems(self) -> list[Problem]:
        wrong = "given; a text of at least one character is needed."
        return [Problem("stop", f"{text!r} {wrong}") for text in self.stop if not text]
