"""Errors as responses: a status, and OpenAI's shape."""

import json
import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from retroflow.errors import RetroflowError, UsageError, is_out_of_memory
from retroflow.generation.arguments import ArgumentError
from retroflow.serving.bodies import BadRequest
from retroflow.serving.worker import QueueFull, TimeIsUp, WorkerDied

_OUR_ARGUMENTS = {"prompts": "prompt", "max_new_tokens": "max_tokens"}


class Refused(RetroflowError):
    """A request that is refused before its body is looked at.

    Args:
        status: of HTTP.
        text: what was given, what is allowed.
        kind: OpenAI's type of error.
    """

    def __init__(self, status: int, text: str, kind: str = "invalid_request_error") -> None:
        super().__init__(text)
        self.status, self.kind = status, kind


class JsonResponse(Response):
    """JSON in ASCII: text from requests may hold what UTF-8 cannot spell."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes."""
        return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()


def failure(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error."""
    status, kind, param, code = 500, "server_error", None, None
    text = str(error)
    match error:
        case Refused():
            status, kind = error.status, error.kind
        case BadRequest():
            status, kind, param, code = 400, "invalid_request_error", error.param, error.code
            status = 404 if code == "model_not_found" else status
        case ArgumentError():
            error = error.renamed(lambda problem: _OUR_ARGUMENTS.get(problem.argument, problem.argument))
            text, status, kind = str(error), 400, "invalid_request_error"
            param = _OUR_ARGUMENTS.get(error.problems[0].argument, error.problems[0].argument)
        case QueueFull():
            status, kind, code = 429, "rate_limit_error", "queue_full"
        case TimeIsUp():
            status, kind, code = 504, "timeout_error", "timeout"
        case WorkerDied():
            status = 503
        case UsageError():
            status, kind = 400, "invalid_request_error"
        case HTTPException():
            status, kind, text = error.status_code, "invalid_request_error", error.detail
        case RetroflowError():
            pass
        case _ if is_out_of_memory(error):
            text = "the machine is out of memory; send fewer or shorter texts at a time, or lower --max-running."
        case _:
            logging.getLogger("retroflow").error("serve: %s", error, exc_info=error)
            text = f"{type(error).__name__} in the server, which its log describes; this is a bug."
    return status, {"error": {"message": text, "type": kind, "param": param, "code": code}}


def failed_response(error: Exception) -> JsonResponse:
    """Return the response to an error."""
    status, body = failure(error)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    headers |= {"Retry-After": "1"} if status in (429, 503) else {}
    return JsonResponse(body, status, headers=headers)
