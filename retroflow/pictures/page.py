"""One HTML file that holds its data, script and style: nothing is loaded from anywhere (docs/decisions/0073).

A content security policy allows this script and this style, by their hashes, and nothing else. The data is one JSON
island; the script puts every text into the page as text, never as markup.
"""

import base64
import hashlib
import html
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from retroflow.errors import RetroflowError
from retroflow.store.atomic import write_file
from retroflow.store.sealed_json import strict_json


def render(data: dict[str, Any]) -> str:
    """Return the page that shows some data; page.js describes its keys.

    Raises:
        RetroflowError: a number in it is not finite.
    """
    strict_json(data, what="the page")
    parts = files("retroflow.pictures")
    script, style, page = (
        parts.joinpath(name).read_text(encoding="utf-8") for name in ("page.js", "page.css", "page.html")
    )
    policy = (
        f"default-src 'none'; script-src '{_hash_of(script)}'; style-src '{_hash_of(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    values = {
        "POLICY": policy,
        "TITLE": html.escape(visible(data["title"])),
        "STYLE": style,
        "DATA": island(data),
        "SCRIPT": script,
    }
    before, *rest = page.split("{{")
    named = [part.partition("}}") for part in rest]
    return before + "".join(values[name] + after for name, _, after in named)


def island(data: dict[str, Any]) -> str:
    """Return JSON that no HTML parser takes for markup: ASCII, without <, > and &."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def visible(text: str) -> str:
    """Return a text without characters that change how others are shown."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def write_page(data: dict[str, Any], output: Path) -> int:
    """Write the page of some data into a new file, whole or not at all.

    Returns:
        Its size in bytes.

    Raises:
        RetroflowError: it cannot be written.
    """
    content = render(data).encode()
    try:
        write_file(output, content)
    except OSError as error:
        raise RetroflowError(f"{output}: cannot be written ({error.strerror}); choose another file.") from error
    return len(content)


def _hash_of(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
