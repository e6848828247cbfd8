"""What a server allows, and who may use it."""

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from retroflow.errors import UsageError
from retroflow.generation.arguments import ArgumentError
from retroflow.options import checked_options

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


@checked_options("", error=ArgumentError.of_complaints)
@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of a server.

    Attributes:
        max_running: texts that are computed together.
        max_waiting: texts that may wait; more are refused (429).
        max_body_bytes: of a request; a longer one is refused (413).
        max_prompt_tokens: of a prompt; a longer one is refused (400).
        max_new_tokens: of an answer; more are refused (400).
        max_prompts: of one request.
        max_seconds: from a request to the end of its answer; then it fails (504).
        max_documents: that one request may add or remove.
        precision: of generated text, fp32 or bf16; auto: bf16 for a pretrained base that reads by its own attention
            where the hardware is faster with it. Scores of a prompt are always in fp32.
    """

    max_running: Annotated[int, Ge(1)] = 16
    max_waiting: Annotated[int, Ge(1)] = 128
    max_body_bytes: Annotated[int, Ge(1024)] = 4 << 20
    max_prompt_tokens: Annotated[int, Ge(1)] = 4096
    max_new_tokens: Annotated[int, Ge(1)] = 2048
    max_prompts: Annotated[int, Ge(1)] = 64
    max_seconds: Annotated[float, Gt(0)] = 600.0
    max_documents: Annotated[int, Ge(1)] = 1000
    precision: Literal["auto", "fp32", "bf16"] = "auto"


@dataclass(frozen=True)
class Keys:
    """Who may use a server.

    Attributes:
        read: for all but the page and /health; None lets everybody in.
        write: for changes of the database; None refuses them all.
    """

    read: str | None = None
    write: str | None = None

    def may_read(self, authorization: str) -> bool:
        """Whether an Authorization header allows to read."""
        return self.read is None or _is(authorization, self.read) or self.may_write(authorization)

    def may_write(self, authorization: str) -> bool:
        """Whether an Authorization header allows to change the database."""
        return self.write is not None and _is(authorization, self.write)


def _is(authorization: str, key: str) -> bool:
    """Compare in a time that does not depend on the key."""
    scheme, _, given = authorization.partition(" ")
    return hmac.compare_digest(given.strip().encode(), key.encode()) and scheme.lower() == "bearer"


def read_key(file: Path | None, variable: str, environment: Mapping[str, str], flag: str) -> str | None:
    """Read a key from a file, or from the environment.

    Args:
        file: given by a flag.
        variable: of the environment, read if there is no file.
        environment: of the process.
        flag: that gives the file, for messages.

    Raises:
        UsageError: the file cannot be read, or the key is empty or has spaces.
    """
    if file is None and variable not in environment:
        return None
    where = f"{flag} {file}" if file is not None else variable
    try:
        key = (file.read_text(encoding="utf-8") if file is not None else environment[variable]).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: cannot be read ({error}); give a text file that holds the key alone.") from error
    if not key or any(letter.isspace() or not letter.isprintable() for letter in key) or not key.isascii():
        raise UsageError(f"{where}: holds no key; write one word of letters and digits.")
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(host: str, keys: Keys, *, without_key: bool) -> None:
    """Refuse to serve others without a key.

    Raises:
        UsageError: the host is not loopback, and there is no key.
    """
    if not is_loopback(host) and keys.read is None and not without_key:
        raise UsageError(
            f'--host is "{host}", which other machines reach, and there is no key; give --api-key-file, set '
            "RETROFLOW_API_KEY, or pass --without-key."
        )
