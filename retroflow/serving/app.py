"""The endpoints: OpenAI's, those of the database, health and metrics, and the page."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from retroflow.serving.answers import DONE, Answer, frame
from retroflow.serving.bodies import BadRequest, Body, Prompt
from retroflow.serving.chat import chat_tokens, end_of_turn
from retroflow.serving.failures import JsonResponse, Refused, failed_response, failure
from retroflow.serving.measured import CONTENT_TYPE
from retroflow.serving.options import LOOPBACK_NAMES
from retroflow.serving.retrieval_verbs import add, remove, search
from retroflow.serving.running import Event
from retroflow.serving.service import Events, Service, Wanted
from retroflow.serving.wanted import chat_wanted, completion_wanted

Endpoint = Callable[[Service, Request], Awaitable[Response]]
Read = TypeVar("Read")

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
PAGE_FILES = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
BODY_SECONDS = 30.0


def make_app(service: Service, *, hosts: Sequence[str] | None = LOOPBACK_NAMES) -> Starlette:
    """Make the application.

    Args:
        service: what answers; its worker runs as long as the application.
        hosts: names in the Host header that are answered, so that no page of the web reaches a server on loopback
            through a name of its own; None for all.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.worker.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.worker.close)

    def route(path: str, endpoint: Endpoint, *methods: str, key: str = "read") -> Route:
        return Route(path, _guarded(service, endpoint, path, key, hosts), methods=methods or ("POST",))

    routes = [
        route("/health", _health, "GET", key=""),
        route("/metrics", _metrics, "GET"),
        route("/v1/models", _models, "GET"),
        route("/v1/models/{id:path}", _model, "GET"),
        route("/v1/completions", _completions),
        route("/v1/chat/completions", _chat),
        route("/v1/retrieval/search", _retrieval(search)),
        route("/v1/retrieval/add", _retrieval(add), key="write"),
        route("/v1/retrieval/remove", _retrieval(remove), key="write"),
        *(route(f"/{path}", _page, "GET", key="") for path in PAGE_FILES),
    ]

    async def failed(_: Request, error: Exception) -> Response:
        return failed_response(error)

    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: failed})


def _guarded(
    service: Service, endpoint: Endpoint, path: str, key: str, hosts: Sequence[str] | None
) -> Callable[[Request], Awaitable[Response]]:
    """Check who asks, turn errors into responses, and count both."""

    async def answer(request: Request) -> Response:
        start = time.perf_counter()
        try:
            _check_origin(request, hosts)
            _check_key(service, request, key)
            response = await endpoint(service, request)
        except ClientDisconnect:
            response = Response(status_code=499)
        except Exception as error:
            response = failed_response(error)
        service.measured.request(path, response.status_code, time.perf_counter() - start)
        return response

    return answer


def _check_origin(request: Request, hosts: Sequence[str] | None) -> None:
    """Refuse requests that pages of other sites make a browser send."""
    host = request.headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if hosts is not None and name not in hosts:
        raise Refused(403, "this server answers only to its own address; open it as http://127.0.0.1.")
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise Refused(403, "requests from pages of other sites are not answered.")


def _check_key(service: Service, request: Request, key: str) -> None:
    given = request.headers.get("authorization", "")
    if key == "write" and not service.keys.may_write(given):
        if service.keys.write is None:
            raise Refused(403, "this server changes no database; start it with --write-key-file.", "permission_error")
        if given and service.keys.may_read(given):
            raise Refused(403, "this key may read and not change the database.", "permission_error")
        raise Refused(401, "the key that may change the database is missing or wrong.", "authentication_error")
    if key == "read" and not service.keys.may_read(given):
        raise Refused(401, 'the key is missing or wrong; send "Authorization: Bearer KEY".', "authentication_error")


async def _body(service: Service, request: Request) -> Body:
    """Read a body within the limits of size and time."""
    content, most = bytearray(), service.options.max_body_bytes
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > most:
                    raise Refused(413, f"the body is longer than {most} bytes, the limit of this server.")
    except TimeoutError as error:
        raise Refused(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds.") from error
    return Body(bytes(content))


async def _completions(service: Service, request: Request) -> Response:
    body = await _body(service, request)
    prompts, wanted = completion_wanted(body, service.name, service.options)
    return await _answer(service, request, prompts, wanted)


async def _chat(service: Service, request: Request) -> Response:
    body = await _body(service, request)
    messages, wanted = chat_wanted(body, service.name, service.options)
    tokenizer = service.opened.tokenizer
    tokens = await run_in_threadpool(chat_tokens, tokenizer, messages, most=service.options.max_prompt_tokens)
    return await _answer(service, request, [tokens], replace(wanted, stop=end_of_turn(tokenizer)))


async def _answer(service: Service, request: Request, prompts: list[Prompt], wanted: Wanted) -> Response:
    events = Events()
    await run_in_threadpool(service.live.follow)
    answer = await run_in_threadpool(service.answer_to, prompts, wanted, events)
    jobs = [choice.job for choice in answer.choices]
    service.worker.submit(jobs)
    stream = events.of(jobs, service.options.max_seconds)
    if not wanted.sampling.stream:
        return JsonResponse(await _whole(request, answer, stream))
    first = await _unless_left(request, anext(stream))  # an error before any text is a status
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_frames(answer, first, stream), media_type="text/event-stream", headers=headers)


async def _whole(request: Request, answer: Answer, stream: AsyncIterator[tuple[int, Event]]) -> dict[str, Any]:
    """Wait for all choices."""

    async def read() -> None:
        async for index, event in stream:
            answer.add(answer.choices[index], event)

    await _unless_left(request, read())
    return await run_in_threadpool(answer.whole)


async def _unless_left(request: Request, reading: Awaitable[Read]) -> Read:
    """Wait for events of a stream; a client that goes away ends the stream, which cancels its jobs."""
    tasks = asyncio.ensure_future(reading), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _frames(
    answer: Answer, first: tuple[int, Event], stream: AsyncIterator[tuple[int, Event]]
) -> AsyncIterator[bytes]:
    try:
        for each in answer.first_frames():
            yield each
        for each in answer.frames(answer.choices[first[0]], first[1]):
            yield each
        async for index, event in stream:
            for each in answer.frames(answer.choices[index], event):
                yield each
        for each in answer.last_frames():
            yield each
    except Exception as error:
        yield frame(failure(error)[1])
        yield DONE
    finally:
        for choice in answer.choices:
            choice.job.is_cancelled = True


def _retrieval(verb: Callable[[Service, Body], dict[str, Any]]) -> Endpoint:
    async def answer(service: Service, request: Request) -> Response:
        body = await _body(service, request)
        return JsonResponse(await run_in_threadpool(verb, service, body))

    return answer


def _described(service: Service) -> dict[str, Any]:
    described = {"id": service.name, "object": "model", "created": service.created, "owned_by": "retroflow"}
    return described | {"retroflow": {"database": service.live.description()}}


async def _models(service: Service, _: Request) -> Response:
    await run_in_threadpool(service.live.follow)
    return JsonResponse({"object": "list", "data": [_described(service)]})


async def _model(service: Service, request: Request) -> Response:
    if request.path_params["id"] != service.name:
        raise BadRequest(f'there is no such model; this server has "{service.name}".', "model", "model_not_found")
    return JsonResponse(_described(service))


async def _health(service: Service, _: Request) -> Response:
    if not service.worker.is_alive:
        return JsonResponse({"status": "dead"}, 503)
    return JsonResponse({"status": "ok"})


async def _metrics(service: Service, _: Request) -> Response:
    return Response(service.measured.text(), media_type=CONTENT_TYPE)


async def _page(_: Service, request: Request) -> Response:
    name, kind = PAGE_FILES[request.url.path.lstrip("/")]
    content = files("retroflow.serving").joinpath(name).read_bytes()
    return Response(content, media_type=kind, headers=PAGE_HEADERS)
