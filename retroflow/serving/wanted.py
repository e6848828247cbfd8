"""Bodies of the two endpoints that generate, as prompts and what is wanted of them."""

from typing import Any

from retroflow.serving.bodies import MOST_LOGPROBS, BadRequest, Body, Prompt, check_text, take_prompts, take_sampling
from retroflow.serving.options import ServerOptions
from retroflow.serving.service import Wanted

DEFAULT_TOKENS = 16
"""Of /v1/completions, as OpenAI has it; a message may be as long as the server allows."""

ROLES = ("system", "developer", "user", "assistant", "tool")


def completion_wanted(body: Body, model: str, options: ServerOptions) -> tuple[list[Prompt], Wanted]:
    """Read a body of /v1/completions.

    Raises:
        BadRequest: a field that is missing, unknown or out of range.
    """
    _check_model(body, model)
    prompts = take_prompts(body, most=options.max_prompts)
    most = options.max_new_tokens
    sampling = take_sampling(body, default_tokens=min(DEFAULT_TOKENS, most), names=("max_tokens",), most_tokens=most)
    echoes = body.yes_or_no("echo", False)
    logprobs = body.whole_number("logprobs", -1, least=-1, most=MOST_LOGPROBS)
    body.end()
    if sampling.max_tokens == 0 and not echoes:
        raise BadRequest("max_tokens is 0; allowed with echo only, to score a prompt.", "max_tokens")
    return prompts, Wanted(sampling, None if logprobs < 0 else logprobs, echoes)


def chat_wanted(body: Body, model: str, options: ServerOptions) -> tuple[list[dict[str, str]], Wanted]:
    """Read a body of /v1/chat/completions; returns messages of role and content.

    Raises:
        BadRequest: a field that is missing, unknown or out of range.
    """
    _check_model(body, model)
    messages = _take_messages(body)
    names = ("max_completion_tokens", "max_tokens")
    sampling = take_sampling(body, default_tokens=None, names=names, most_tokens=options.max_new_tokens)
    wants = body.yes_or_no("logprobs", False)
    top = body.whole_number("top_logprobs", 0, least=0, most=MOST_LOGPROBS)
    body.end()
    if top and not wants:
        raise BadRequest("top_logprobs needs logprobs: true.", "top_logprobs")
    if sampling.max_tokens == 0:
        raise BadRequest("max_tokens is 0; allowed: at least 1.", "max_tokens")
    return messages, Wanted(sampling, top if wants else None, is_chat=True)


def _check_model(body: Body, model: str) -> None:
    given = body.text("model", model)
    if given != model:
        raise BadRequest(f'there is no such model; this server has "{model}".', "model", "model_not_found")


def _take_messages(body: Body) -> list[dict[str, str]]:
    messages = body.take("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: a list of at least one message is needed.", "messages")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise BadRequest(f"{where}: an object with role and content is needed.", where)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise BadRequest(f"{where}.role: allowed: {', '.join(ROLES)}.", f"{where}.role")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise BadRequest(f"{where}.content: a text, or a list of parts of type text, is needed.", f"{where}.content")
    check_text(content, f"{where}.content")
    return {"role": "system" if role == "developer" else role, "content": content}
