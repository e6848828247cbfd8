"""The database over HTTP: search, add and remove."""

import dataclasses
from typing import Any

from retroflow.serving.bodies import BadRequest, Body, check_text
from retroflow.serving.service import Service

MOST_NEIGHBOURS = 100
_FIELDS = ("id", "text", "title", "source")


def search(service: Service, body: Body) -> dict[str, Any]:
    """Find chunks: {"query": ..., "k": 5}."""
    query, k = body.text("query"), body.whole_number("k", 5, least=1, most=MOST_NEIGHBOURS)
    body.end()
    if not query.strip():
        raise BadRequest("query is blank; give words to search for.", "query")
    service.live.follow()
    found = service.live.search(query, k)
    return {"results": [dataclasses.asdict(each) for each in found], "database": service.live.description()}


def add(service: Service, body: Body) -> dict[str, Any]:
    """Add documents: {"documents": [{"id": ..., "text": ..., "title": ..., "source": ...}]}."""
    documents = _list(body, "documents", service.options.max_documents)
    body.end()
    checked = [_document(each, f"documents[{number}]") for number, each in enumerate(documents)]
    return dataclasses.asdict(service.live.add(checked)) | {"database": service.live.description()}


def remove(service: Service, body: Body) -> dict[str, Any]:
    """Remove documents: {"ids": [...]}."""
    ids = _list(body, "ids", service.options.max_documents)
    body.end()
    for number, each in enumerate(ids):
        if not isinstance(each, str):
            raise BadRequest(f"ids[{number}]: a text is needed.", "ids")
        check_text(each, "ids")
    return dataclasses.asdict(service.live.remove(ids)) | {"database": service.live.description()}


def _list(body: Body, name: str, most: int) -> list[Any]:
    value = body.take(name)
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise BadRequest(f"{name}: a list of 1 to {most} is needed.", name)
    return value


def _document(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not {"id", "text"} <= set(value) <= set(_FIELDS):
        raise BadRequest(f"{where}: an object with id and text, and perhaps title and source, is needed.", where)
    for name, text in value.items():
        if not isinstance(text, str) or not (text or name not in ("id", "text")):
            raise BadRequest(f"{where}.{name}: a text is needed.", f"{where}.{name}")
        check_text(text, f"{where}.{name}")
    return value
