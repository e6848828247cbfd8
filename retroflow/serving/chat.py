"""Messages as the tokens of a prompt, by the chat template of the tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.serving.bodies import BadRequest, check_length

_ANSWER = "Retroflow answers."


def chat_tokens(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, most: int | None = None) -> list[int]:
    """Render messages, up to where the model answers.

    Args:
        tokenizer: with a template.
        messages: of role and content.
        most: tokens that are allowed; None for any number.

    Raises:
        BadRequest: the tokenizer has no template, the template refuses the messages, or a message spells a control
            token, which would end it early.
    """
    _check_template(tokenizer)
    for number, message in enumerate(messages):
        control = next((name for name in tokenizer.special_tokens if name in message["content"]), None)
        if control is not None:
            where = f"messages[{number}].content"
            raise BadRequest(f"{where} spells {control}, a control token of the model; leave it out.", where)
    text = _rendered(tokenizer, messages, add_generation_prompt=True)
    if most is not None:
        check_length(tokenizer, text, most, "messages")
    return tokenizer.encode_with_specials(text)


def end_of_turn(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the control token that ends a message of the model, which stops its answer; none if there is none."""
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": _ANSWER}]
    after = _rendered(tokenizer, turns, add_generation_prompt=False).rpartition(_ANSWER)[2]
    found = [(after.find(name), name) for name in tokenizer.special_tokens if name in after]
    return (min(found)[1],) if found else ()


def _check_template(tokenizer: Tokenizer) -> None:
    if tokenizer.chat_template is None:
        raise BadRequest("the tokenizer of this model has no chat template; use /v1/completions.", "messages")


def _rendered(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    conversation: list[list[dict[str, Any]]] = [[dict(message) for message in messages]]
    try:
        rendered: Any = render_jinja_template(
            conversation,
            chat_template=tokenizer.chat_template,
            add_generation_prompt=add_generation_prompt,
            eos_token=tokenizer.end_of_text_token,
            bos_token="",  # the template has its own
        )
    except Exception as error:  # jinja's, and whatever the template's own code raises
        reason = f"{type(error).__name__}: {error}"
        raise BadRequest(f"the chat template of this model refuses the messages ({reason}).", "messages") from error
    text = rendered[0] if isinstance(rendered, tuple | list) else rendered
    return str(text[0] if isinstance(text, list) else text)
