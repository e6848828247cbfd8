"""A small random model with a database that lives, and a server of it in this process."""

import asyncio
import dataclasses
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from retroflow.database.database import Database
from retroflow.generation import RetrievalDatabase
from retroflow.generation.language_model import LanguageModel
from retroflow.model.config import RetroConfig
from retroflow.runs.origin import Origin
from tests.database.small import build, documents_of, text_of

CHUNK = 8
READ_KEY, WRITE_KEY = "read-key", "write-key"
DOCUMENTS = tuple(range(12))


def small_model(tokenizer, seed=0, **changes):
    config = RetroConfig(
        vocabulary_size=tokenizer.vocabulary_size, chunk_length=CHUNK, width=16, num_layers=2, num_heads=2, head_width=8,
        cca_layers=(2,), encoder_width=8, encoder_layers=1, encoder_heads=1, encoder_cross_attention_layers=(1,),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = dataclasses.replace(config, **changes).build().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger weights than at the start: neighbours change what is written
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def make_database(folder: Path) -> Database:
    return build(folder, [{**each, "source": f"https://docs.test/{each['id']}"} for each in documents_of(*DOCUMENTS)])


def open_model(database: Database | None, tokenizer=None, *, step=CHUNK, double=False, **changes) -> LanguageModel:
    tokenizer = tokenizer or database.snapshot.tokenizer
    model = small_model(tokenizer, **changes)
    model = model.double() if double else model
    origin = Origin("small", 0, 2, step, 16 * CHUNK, tokenizer.fingerprint(), {}, "test")
    reader = None if database is None else RetrievalDatabase.of(database, tokenizer=tokenizer, chunk_length=CHUNK)
    return LanguageModel(model, tokenizer, origin, reader)


def prompt_of(seed: int, words: int = 6) -> str:
    return text_of(1000 + seed, words)


@contextmanager
def listening(service) -> Iterator[str]:
    """A server on a free port of this machine; its address."""
    import uvicorn

    from retroflow.serving.app import make_app

    with socket.create_server(("127.0.0.1", 0)) as socket_:
        server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="warning"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[socket_])))
        thread.start()
        try:
            yield f"http://127.0.0.1:{socket_.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
