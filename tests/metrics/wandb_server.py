"""Enough of a wandb server for one run to be logged online, and for it to die in the middle."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Optional


class FakeWandbServer:
    """Answers as wandb's back end does, on a free port of the loopback; `url` is its address."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.rows = []  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def rows(self) -> list[dict[str, object]]:
        """History rows received, in order."""
        return self._server.rows  # type: ignore[attr-defined]

    def die(self) -> None:
        """From now on its port refuses connections."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def __enter__(self) -> "FakeWandbServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.die()


class _Handler(BaseHTTPRequestHandler):
    # HTTP/1.0, the default: no connection outlives its request, so none outlives the server.

    def do_POST(self) -> None:
        body = json.loads(self._body() or b"{}")
        if self.path.endswith("/file_stream"):
            lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.rows.extend(json.loads(line) for line in lines)  # type: ignore[attr-defined]
            return self._answer({})
        operation = re.search(r"\b(?:query|mutation)\s+(\w+)", body.get("query", ""))
        variables = body.get("variables", {})
        match operation[1] if operation else "":
            case "UpsertBucket":
                project = {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}}
                bucket = {"id": "run", "name": variables.get("name"), "displayName": "run", "config": "{}"}
                self._answer({"data": {"upsertBucket": {"inserted": True, "bucket": bucket | {"project": project}}}})
            case "CreateRunFiles":
                host = f"http://{self.headers['Host']}"
                files = [{"name": name, "uploadUrl": f"{host}/{name}"} for name in variables.get("files", [])]
                self._answer({"data": {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}})
            case _:
                self._answer({"data": {}})

    def do_PUT(self) -> None:
        self._body()
        self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, answer: dict[str, object]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
