"""Requests to a Qdrant server: sent again where that may help, and an error in one sentence where it does not."""

import json
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from retroflow.errors import DamagedDataError, RetrieverError, UsageError

EMBEDDED = ":memory:"
KEY_VARIABLE, URL_VARIABLE = "QDRANT_API_KEY", "RETROFLOW_QDRANT_URL"
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds before a request is sent again; each pause is twice the last
PASSING = (408, 429, 500, 502, 503, 504)  # HTTP statuses of a server that is starting, restarting or overloaded
REBUILD = "Delete the index artifact and run `retroflow prepare` again"

T = TypeVar("T")


class Connection:
    """A client of one server, or of the library's embedded mode; threads share it, a forked process gets its own.

    Args:
        url: of the server, or ":memory:" for the embedded mode.
        timeout: seconds that an answer may take.
        retries: how often a request is sent again that found no server, or a busy one.

    Raises:
        UsageError: a URL that is none or holds a password, or an API key that no header can hold.
    """

    def __init__(self, url: str, *, timeout: int, retries: int) -> None:
        self.is_embedded = url == EMBEDDED
        self.url = url if self.is_embedded else _with_port(_checked_url(url))
        self._key = None if self.is_embedded else _api_key()
        self._timeout, self._retries = timeout, retries
        self._lock = threading.Lock()
        self._made: tuple[int, QdrantClient] | None = None

    def call(self, doing: str, request: Callable[[QdrantClient], T], *, collection: str = "") -> T:
        """Return what request(client) returns.

        Args:
            doing: for messages, such as "searching".
            request: may be called several times, so it must be safe to repeat.
            collection: that the request needs.

        Raises:
            RetrieverError: no server, one that stays busy, or one that refuses the request.
            UsageError: the server wants another API key.
            DamagedDataError: the collection is not there.
        """
        pause, fault = FIRST_PAUSE, ""
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            try:
                return request(self._client())
            except ResourceExhaustedResponse as error:
                pause, fault = min(max(pause, error.retry_after_s), LONGEST_PAUSE), f"it is busy: {error}"
            except ResponseHandlingException as error:
                if not isinstance(error.source, httpx.TransportError):
                    raise self._no_qdrant(doing) from error
                fault = _described(error.source, self._timeout)
            except UnexpectedResponse as error:
                if error.status_code not in PASSING:
                    raise self._refusal(error, doing, collection) from error
                fault = f"it answers with HTTP status {error.status_code}: {_words(error) or error.reason_phrase}"
            except json.JSONDecodeError as error:
                raise self._no_qdrant(doing) from error
        tries = "1 try" if not self._retries else f"{self._retries + 1} tries"
        raise RetrieverError(
            f"{self._while(doing)}: {fault} ({tries}). Start the server, or set retriever.url, or {URL_VARIABLE} if it "
            "has moved; retriever.search.timeout and .retries say how long to wait for it."
        )

    def is_reachable(self) -> bool:
        """Whether something answers at the URL, within two seconds and without a second try."""
        if self.is_embedded:
            return True
        try:
            httpx.get(f"{self.url.rstrip('/')}/", timeout=2.0)
        except httpx.HTTPError:
            return False
        return True

    def _client(self) -> QdrantClient:
        with self._lock:
            if self._made is None or (self._made[0] != os.getpid() and not self.is_embedded):
                self._made = os.getpid(), self._new_client()
            return self._made[1]

    def _new_client(self) -> QdrantClient:
        if self.is_embedded:
            return QdrantClient(EMBEDDED)
        return QdrantClient(url=self.url, api_key=self._key, timeout=self._timeout, check_compatibility=False)

    def _while(self, doing: str) -> str:
        return f"qdrant: {doing} at {self.url} failed"

    def _no_qdrant(self, doing: str) -> RetrieverError:
        return RetrieverError(f"{self._while(doing)}: what answers there is not Qdrant. Set retriever.url.")

    def _refusal(self, error: UnexpectedResponse, doing: str, collection: str) -> Exception:
        words = _words(error)
        if error.status_code in (401, 403):
            given = "does not accept the API key that is" if self._key else "wants an API key, and none is"
            return UsageError(
                f"{self._while(doing)}: the server {given} in the environment variable {KEY_VARIABLE} (HTTP status "
                f"{error.status_code})."
            )
        if error.status_code == 404 and words and collection:
            return missing(collection, self.url)
        if not words:
            return self._no_qdrant(doing)
        return RetrieverError(f"{self._while(doing)}: the server refuses: {words.rstrip('.')}.")


def missing(collection: str, url: str) -> DamagedDataError:
    """Return the error for a collection that a saved index names and the server has not."""
    return DamagedDataError(
        f'qdrant: the index needs the collection "{collection}", which is not at {url}. It was deleted, or this is '
        f"another server than the one that it was built on. {REBUILD}, or set {URL_VARIABLE} to its address."
    )


def _checked_url(of_recipe: str) -> str:
    url = os.environ.get(URL_VARIABLE, "").strip() or of_recipe
    name = URL_VARIABLE if url != of_recipe else "retriever.url"
    address = urlsplit(url)
    try:
        valid = address.scheme in ("http", "https") and bool(address.hostname) and (address.port or 1) > 0
    except ValueError:
        valid = False
    if address.username or address.password:  # not shown: it would be in the recipe, in every artifact and in logs
        raise UsageError(
            f"{name} holds a user name or password. Leave them out, and give the API key in the environment variable "
            f"{KEY_VARIABLE}."
        )
    if not valid or address.query or address.fragment:
        raise UsageError(
            f'{name} is "{url}"; allowed: "http://HOST:PORT" or "https://HOST:PORT" of a Qdrant server, such as '
            f'"http://localhost:6333", or "{EMBEDDED}" for the library\'s embedded mode.'
        )
    return url


def _with_port(url: str) -> str:
    """Return an address with its port: Qdrant's own, or 443 for https, behind which is a proxy or a cloud."""
    address = urlsplit(url)
    if address.port is not None:
        return url
    return address._replace(netloc=f"{address.netloc}:{443 if address.scheme == 'https' else 6333}").geturl()


def _api_key() -> str | None:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):  # httpx would show it in its message
        raise UsageError(f"{KEY_VARIABLE} has characters that no HTTP header may have; set it again.")
    return key or None


def _described(error: httpx.TransportError, timeout: int) -> str:
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
        return f"no server answers there: {str(error).rstrip('.') or type(error).__name__}"
    if isinstance(error, httpx.TimeoutException):
        return f"no answer within {timeout} s"
    return f"the connection broke: {str(error).rstrip('.') or type(error).__name__}"


def _words(error: UnexpectedResponse) -> str:
    """Return what Qdrant says in its answer; empty if it is not an answer of Qdrant."""
    try:
        status = json.loads(error.content)["status"]
        return str(status["error"])
    except (ValueError, KeyError, TypeError):
        return ""
