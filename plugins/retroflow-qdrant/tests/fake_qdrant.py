"""The part of Qdrant's HTTP interface that the plugin uses, over the library's embedded mode; a process to kill.

    python fake_qdrant.py PORT [LOG]

With the file LOG, in which it writes all changes, the collections outlive the process. It is no Qdrant: what it shows
is that the plugin sends well-formed requests, and what the plugin does when a server refuses, stalls or dies.

Environment: FAKE_KEY is the API key that it wants; FAKE_DIES_AFTER ends the process after so many upserts, without
an answer to the last; FAKE_BUSY answers so many requests with FAKE_STATUS, 503 if not set; FAKE_STALLS waits so many
seconds before each answer; FAKE_INDEXES says so many times that a collection is being indexed, each time with
FAKE_PROGRESS more vectors.
"""

import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models

LOCK = threading.Lock()
COUNTS = {"upserts": 0, "requests": 0, "looks": 0}


def answer(client, method, path, body):
    """Return (status, result or error)."""
    found = re.fullmatch(r"/collections/([^/]+)(/.*)?", path)
    if found is None:
        return 200, {"title": "fake"}
    name, rest = found[1], found[2] or ""
    if rest == "/exists":
        return 200, {"exists": client.collection_exists(name)}
    if (method, rest) == ("PUT", ""):
        if client.collection_exists(name):
            return 409, f"Wrong input: Collection `{name}` already exists!"
        vectors = models.VectorParams(**body["vectors"])
        return 200, client.create_collection(name, vectors_config=vectors)
    if not client.collection_exists(name):
        return 404, f"Not found: Collection `{name}` doesn't exist!"
    if (method, rest) == ("DELETE", ""):
        return 200, client.delete_collection(name)
    if (method, rest) == ("GET", ""):
        COUNTS["looks"] += 1
        info = client.get_collection(name).model_dump(mode="json")
        if COUNTS["looks"] <= int(os.environ.get("FAKE_INDEXES", "0")):
            info |= {"status": "yellow", "indexed_vectors_count": COUNTS["looks"] * int(os.environ["FAKE_PROGRESS"])}
        return 200, info
    if rest == "/points" and method == "PUT":
        client.upsert(name, models.Batch(**body["batch"]))
        COUNTS["upserts"] += 1
        if COUNTS["upserts"] == int(os.environ.get("FAKE_DIES_AFTER", "-1")):
            os._exit(1)
    elif rest == "/points/delete":
        client.delete(name, models.PointIdsList(points=body["points"]))
    elif rest == "/points/query/batch":
        return 200, [{"points": search(client, name, models.QueryRequest(**each))} for each in body["searches"]]
    elif rest == "/points/scroll":
        points, offset = client.scroll(name, limit=body["limit"], offset=body.get("offset"), with_vectors=True)
        return 200, {"points": [point.model_dump(mode="json") for point in points], "next_page_offset": offset}
    elif rest == "/points/count":
        return 200, {"count": client.count(name).count}
    else:
        return 400, f"{method} {path} is not known here"
    return 200, {"operation_id": 1, "status": "completed"}


def search(client, name, request):
    """Answer one query; the embedded mode takes milliseconds to apply a filter, so ids are left out here."""
    gone = set(request.filter.must_not[0].has_id) if request.filter else set()
    points = client.query_points(name, request.query, limit=request.limit + len(gone)).points
    return [point.model_dump(mode="json") for point in points if point.id not in gone][: request.limit]


class FakeQdrant(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        COUNTS["requests"] += 1
        time.sleep(float(os.environ.get("FAKE_STALLS", "0")))
        path = self.path.partition("?")[0]
        if COUNTS["requests"] <= int(os.environ.get("FAKE_BUSY", "0")):
            return self.send(int(os.environ.get("FAKE_STATUS", "503")), "starting")
        if path != "/" and self.headers.get("api-key", "") != os.environ.get("FAKE_KEY", ""):
            return self.send(401, "Must provide an API key or an Authorization bearer token")
        with LOCK:
            told = json.loads(body) if body else None
            if self.server.log is not None and (self.command in ("PUT", "DELETE") or path.endswith("/delete")):
                self.server.log.write(json.dumps([self.command, path, told]) + "\n")
                self.server.log.flush()
            status, result = answer(self.server.client, self.command, path, told)
        return self.send(status, result)

    def send(self, status, result):
        told = {"result": result, "status": "ok"} if status == 200 else {"status": {"error": result}}
        content = json.dumps({**told, "time": 0.0}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status == 429:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = serve

    def log_message(self, *arguments):
        """Say nothing."""


def main() -> None:
    """Serve until the process is ended; print the port."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), FakeQdrant)
    server.client, server.log = QdrantClient(":memory:"), None
    if sys.argv[2:]:
        server.log = open(sys.argv[2], "a+", encoding="utf-8")  # noqa: SIM115  # until the process is ended
        server.log.seek(0)
        for line in server.log:
            answer(server.client, *json.loads(line))
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
