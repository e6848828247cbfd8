"""Serve a model over HTTP until the process is stopped."""

import asyncio
import socket

import uvicorn

from retroflow.console import say
from retroflow.errors import UsageError
from retroflow.serving.app import make_app
from retroflow.serving.options import LOOPBACK_NAMES, check_host, is_loopback
from retroflow.serving.service import Service

MOST_CONNECTIONS = 512
"""Open at one time; each may hold a body of a few MiB for a while. One more is answered with 503."""


def serve(service: Service, *, host: str = "127.0.0.1", port: int = 8000, without_key: bool = False) -> None:
    """Answer requests until an interrupt or a signal to end; those that run are finished within ten seconds.

    Args:
        service: with the model.
        host: address to listen at.
        port: 0 for any that is free.
        without_key: let other machines in without a key.

    Raises:
        UsageError: the host is not loopback and there is no key, or the address cannot be used.
    """
    check_host(host, service.keys, without_key=without_key)
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((bare, port))
        except (OSError, OverflowError) as error:
            raise UsageError(f"--host {host} --port {port}: cannot be used ({error}); give others.") from error
        own = f"[{bare}]" if family == socket.AF_INET6 else bare
        say(f"serving {service.name} at http://{own}:{listening.getsockname()[1]}")
        hosts = (*LOOPBACK_NAMES, own) if is_loopback(host) else None
        config = uvicorn.Config(
            make_app(service, hosts=hosts),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=10,
            h11_max_incomplete_event_size=64 << 10,
            limit_concurrency=MOST_CONNECTIONS,
        )
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))
