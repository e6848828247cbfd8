"""Chat templates: Jinja that turns messages into a prompt, as tokenizers of instruction-tuned models bring it."""

import json
from pathlib import Path
from typing import Any


def chat_template_beside(file: Path, config: dict[str, Any]) -> str | None:
    """Read the template of a tokenizer.json: that of chat_template.jinja, else that of its configuration.

    Raises:
        OSError: chat_template.jinja cannot be read.
    """
    beside = file.with_name("chat_template.jinja")
    template = beside.read_text(encoding="utf-8") if beside.is_file() else config.get("chat_template")
    return with_beginning(template, config.get("bos_token"))


def with_beginning(template: Any, beginning: Any) -> str | None:
    """Let a template know the token that a text begins with, which templates call `bos_token`.

    Args:
        template: None, or several by name, for none.
        beginning: the token, as text or as in tokenizer_config.json; None if there is none.
    """
    if not isinstance(template, str):
        return None
    name = beginning.get("content") if isinstance(beginning, dict) else beginning
    if not isinstance(name, str) or not name or "bos_token" not in template:
        return template
    return f"{{%- set bos_token = {json.dumps(name)} -%}}{template}"
