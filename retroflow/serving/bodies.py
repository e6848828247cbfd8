"""Bodies of requests: JSON in, checked values out; a complaint names the field, what was given and what is allowed."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.errors import UsageError

MOST_LOGPROBS = 20
MOST_STOPS = 16
MOST_CHOICES = 64

TOO_LONG = "context_length_exceeded"
"""Code of a prompt with too many tokens."""

_MOST_LETTERS = 8
"""Of a token in ordinary text, generously; a text that has longer ones is encoded as a whole."""

_MARGIN = 64
"""Tokens by which cutting a text may change their number."""

_IGNORED = {
    "frequency_penalty": (0, None),
    "logit_bias": ({}, None),
    "presence_penalty": (0, None),
    "suffix": ("", None),
    "tools": ([], None),
    "functions": ([], None),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
}
"""Fields that change an answer and are not supported -> values that mean nothing."""

_MEANINGLESS = frozenset(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "parallel_tool_calls",
        "reasoning_effort",
        "verbosity",
        "prediction",
        "web_search_options",
    )
)
"""Fields of OpenAI that say nothing about the text."""


class BadRequest(UsageError):
    """A body that cannot be answered.

    Args:
        text: what was given, what is allowed.
        param: the field; None for the whole body.
        code: for programs, such as "model_not_found".
    """

    def __init__(self, text: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(text)
        self.param, self.code = param, code


class Body:
    """A JSON object whose fields are taken one by one; what is left at the end is refused.

    Args:
        content: bytes of a request.

    Raises:
        BadRequest: not a JSON object.
    """

    def __init__(self, content: bytes) -> None:
        try:
            values = json.loads(content, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the body is not JSON ({error}); send a JSON object.") from error
        if not isinstance(values, dict):
            raise BadRequest(f"the body is {_kind(values)}; send a JSON object.")
        self._values: dict[str, Any] = values

    def take(self, name: str, default: Any = None) -> Any:
        """Return a field and forget it; null is as good as nothing."""
        value = self._values.pop(name, None)
        return default if value is None else value

    def whole_number(self, name: str, default: int, *, least: int, most: int) -> int:
        """Take a whole number in a range."""
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise BadRequest(f"{name} is {_shown(value)}; allowed: a whole number from {least} to {most}.", name)
        return value

    def number(self, name: str, default: float, *, least: float, most: float) -> float:
        """Take a number in a range."""
        value = self.take(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            raise BadRequest(f"{name} is {_shown(value)}; allowed: a number from {least:g} to {most:g}.", name)
        return float(value)

    def yes_or_no(self, name: str, default: bool) -> bool:
        """Take true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise BadRequest(f"{name} is {_shown(value)}; allowed: true or false.", name)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Take a text."""
        value = self.take(name, default)
        if not isinstance(value, str):
            given = "is missing" if value is None else f"is {_shown(value)}"
            raise BadRequest(f"{name} {given}; a text is needed.", name)
        check_text(value, name)
        return value

    def texts(self, name: str, *, most: int) -> tuple[str, ...]:
        """Take a text or a list of texts, none of them empty."""
        value = self.take(name, [])
        found = [value] if isinstance(value, str) else value
        if (
            not isinstance(found, list)
            or len(found) > most
            or not all(isinstance(each, str) and each for each in found)
        ):
            raise BadRequest(f"{name} is {_shown(value)}; allowed: a text or a list of up to {most} of them.", name)
        for each in found:
            check_text(each, name)
        return tuple(found)

    def part(self, name: str) -> "Body":
        """Take an object within the object."""
        value = self.take(name, {})
        if not isinstance(value, dict):
            raise BadRequest(f"{name} is {_shown(value)}; allowed: an object.", name)
        found = object.__new__(Body)
        found._values = dict(value)
        return found

    def end(self, where: str = "") -> None:
        """Refuse fields that nobody took.

        Raises:
            BadRequest: there is one.
        """
        for name, value in self._values.items():
            if not where and name in _MEANINGLESS:
                continue
            if not where and name in _IGNORED:
                if value in _IGNORED[name] or value is None:
                    continue
                raise BadRequest(f"{name} is not supported; leave it out.", name)
            raise BadRequest(f"{_shown(where + name)} is no known field; leave it out.", where + name)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, as OpenAI's fields say it, and ours.

    Attributes:
        max_tokens: None for as many as allowed.
        n: texts for each prompt.
        seed: None for a random one.
        retrieves: `retroflow.retrieval`.
        measures_influence: `retroflow.influence`.
        with_usage: `stream_options.include_usage`.
    """

    max_tokens: int | None
    n: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    stop: tuple[str, ...]
    seed: int | None
    stream: bool
    with_usage: bool
    retrieves: bool
    measures_influence: bool


def take_sampling(body: Body, *, default_tokens: int | None, names: Sequence[str], most_tokens: int) -> Sampling:
    """Take the fields that both endpoints have.

    Args:
        body: of the request.
        default_tokens: None for as many as the server allows.
        names: of the field for the number of tokens.
        most_tokens: that the server allows.
    """
    tokens = [body.take(name) for name in names]
    limit = next((each for each in tokens if each is not None), default_tokens)
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit <= most_tokens):
        raise BadRequest(
            f"{names[0]} is {_shown(limit)}; allowed: a whole number from 0 to {most_tokens}, this server's limit.",
            names[0],
        )
    temperature = body.number("temperature", 1.0, least=0, most=100)
    n = body.whole_number("n", 1, least=1, most=MOST_CHOICES)
    best_of = body.whole_number("best_of", n, least=1, most=MOST_CHOICES)
    if best_of != n:
        raise BadRequest(f"best_of is {best_of}; it is not supported, and must equal n, {n}.", "best_of")
    seed = body.take("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or abs(seed) >= 1 << 63):
        raise BadRequest(f"seed is {_shown(seed)}; allowed: a whole number of 64 bits.", "seed")
    stream, with_usage = body.yes_or_no("stream", False), False
    options = body.part("stream_options")
    with_usage = options.yes_or_no("include_usage", False)
    options.yes_or_no("include_obfuscation", False)
    options.end("stream_options.")
    own = body.part("retroflow")
    retrieves, influence = own.yes_or_no("retrieval", True), own.yes_or_no("influence", True)
    own.end("retroflow.")
    return Sampling(
        max_tokens=limit,
        n=n,
        temperature=0.0 if temperature < 1e-5 else temperature,
        top_p=body.number("top_p", 1.0, least=0, most=1),
        top_k=body.whole_number("top_k", 0, least=0, most=1 << 30),
        repetition_penalty=body.number("repetition_penalty", 1.0, least=0.01, most=100),
        stop=body.texts("stop", most=MOST_STOPS),
        seed=seed,
        stream=stream,
        with_usage=with_usage,
        retrieves=retrieves,
        measures_influence=influence,
    )


Prompt = str | list[int]


def take_prompts(body: Body, *, most: int) -> list[Prompt]:
    """Take the prompts of /v1/completions: a text, a list of them, tokens, or a list of lists of tokens."""
    value = body.take("prompt")
    if value is None:
        raise BadRequest("prompt is missing; give a text, tokens, or a list of either.", "prompt")
    prompts = [value] if isinstance(value, str) or _are_tokens(value) else value
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) or _are_tokens(p) for p in prompts):
        raise BadRequest(
            f"prompt is {_shown(value)}; allowed: a text, tokens (whole numbers), or a list of either, not empty.",
            "prompt",
        )
    if len(prompts) > most:
        raise BadRequest(f"prompt is a list of {len(prompts)}; this server takes up to {most} at a time.", "prompt")
    for prompt in prompts:
        if isinstance(prompt, str):
            check_text(prompt, "prompt")
    return prompts


def check_text(text: str, name: str) -> None:
    """Refuse lone surrogates, which JSON can spell and no text has.

    Raises:
        BadRequest: there is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{name} holds half of a surrogate pair, which is not text; send UTF-8.", name) from error


def check_length(tokenizer: Tokenizer, text: str, most: int, name: str) -> None:
    """Refuse a text by its beginning if that alone has too many tokens; the whole would take long to encode.

    Raises:
        BadRequest: it has.
    """
    beginning = text[: most * _MOST_LETTERS]
    if len(beginning) < len(text) and len(tokenizer.encode(beginning).ids) > most + _MARGIN:
        raise BadRequest(f"{name}: more than the {most} tokens that this server takes.", name, TOO_LONG)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "true or false"}.get(type(value), "a number" if value else "null")


def _shown(value: Any) -> str:
    """Return the beginning of a value as JSON, which has no letters beyond ASCII."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = json.dumps(value, ensure_ascii=True)
    except RecursionError:  # it could just be read
        return "nested too deeply"
    return text if len(text) <= 60 else text[:60] + "..."
