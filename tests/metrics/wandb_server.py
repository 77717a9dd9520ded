"""Enough of a wandb server for real clients: it keeps runs by id, lets them be resumed, fails when told to, dies."""

import base64
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Optional

API_KEY = "0" * 40
"""The only key that is not answered with 401."""

_HISTORY, _EVENTS, _LOG = "wandb-history.jsonl", "wandb-events.jsonl", "output.log"


@dataclass
class StoredRun:
    """What has arrived of one run, over all attempts at it."""

    files: dict[str, list[str]] = field(default_factory=dict)
    """Lines by the name of the stream. The client says at which line a chunk begins: sent twice, it counts once."""

    wandb_config: dict[str, Any] = field(default_factory=dict)
    """Every value as wandb wraps it, and `_wandb`: what wandb says of itself."""

    exit_code: Optional[int] = None
    """Of the last attempt that was ended."""

    complete: bool = False
    """Whether the last attempt was ended; taking the run up again makes it False."""

    entity: Optional[str] = None
    project: Optional[str] = None
    """As it was made; later requests name those of the answer to that."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """History as it was logged: without wandb's own keys, which begin with `_`, and pages."""
        return [
            {key: value for key, value in row.items() if not (key.startswith("_") or isinstance(value, dict))}
            for row in self.history
        ]

    @property
    def history(self) -> list[dict[str, Any]]:
        """History with wandb's own keys, such as `_step`."""
        return [json.loads(line) for line in self.files.get(_HISTORY, [])]

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration as it was given to wandb."""
        return {key: entry["value"] for key, entry in self.wandb_config.items() if key != "_wandb"}

    @property
    def metrics(self) -> dict[str, str]:
        """What `define_metric` was told: name or pattern → its x axis, "" for none."""
        # wandb numbers the fields: "1" name, "2" pattern, "5" the position of the x axis in this list, from 1.
        defined = self.wandb_config.get("_wandb", {}).get("value", {}).get("m", [])
        return {
            metric.get("1") or metric["2"]: defined[metric["5"] - 1]["1"] if "5" in metric else "" for metric in defined
        }


class FakeWandbServer:
    """Answers as wandb's back end does, on a free port of the loopback; `url` is its address.

    A request is of a kind: the name of its GraphQL operation, `file_stream` (history and the like), or `upload`.
    """

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        """By id."""
        self.requests: Counter[str] = Counter()
        """How many came, by kind; those that were refused too."""
        self.refused: Counter[str] = Counter()
        """How many were answered with an error, by kind."""
        self._status, self._kind, self._times = 200, "", 0.0
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def fail(self, status: int, kind: str = "", times: float = math.inf) -> None:
        """Answer the next `times` requests of `kind` with `status`; no kind: of all kinds. Replaces what was said."""
        with self._changed:
            self._status, self._kind, self._times = status, kind, times

    def recover(self) -> None:
        """Fail no more."""
        self.fail(200, times=0)

    def wait_for(self, predicate: Callable[["FakeWandbServer"], bool], timeout: float = 30.0) -> None:
        """Return once `predicate(self)` holds, looked at after every request. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self), timeout):
                raise TimeoutError(f"not so within {timeout:g} s; requests: {dict(self.requests)}")

    def die(self) -> None:
        """From now on its port refuses connections."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def answer(self, kind: str, path: str, body: dict[str, Any], authorized: bool) -> tuple[int, dict[str, Any]]:
        """Status and answer to one request."""
        with self._changed:
            self.requests[kind] += 1
            status = 200 if authorized else 401
            if self._times and self._kind in ("", kind):
                self._times -= 1
                status = self._status
            if status != 200:
                self.refused[kind] += 1
            answer = {"error": "refused"} if status != 200 else self._take(kind, path, body)
            self._changed.notify_all()
        return status, answer

    def _take(self, kind: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        variables = body.get("variables", {})
        match kind:
            case "file_stream":
                self._stream(self.runs[path.split("/")[-2]], body)
                return {}
            case "RunResumeStatus":
                run = self.runs.get(variables["name"])
                return {"data": {"model": _PROJECT | {"bucket": run and _resume_status(variables["name"], run)}}}
            case "UpsertBucket":
                return {"data": {"upsertBucket": self._upsert(variables)}}
            case "CreateRunFiles":
                # Without an uploadUrl for each, wandb's process ends with a segmentation fault.
                files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in variables["files"]]
                return {"data": {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}}
            case _:
                return {"data": {}}

    def _stream(self, run: StoredRun, body: dict[str, Any]) -> None:
        for name, chunk in body.get("files", {}).items():
            lines = run.files.setdefault(name, [])
            lines[chunk["offset"] : chunk["offset"] + len(chunk["content"])] = chunk["content"]
        if body.get("complete"):
            run.complete, run.exit_code = True, body["exitcode"]

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, StoredRun())
        run.complete = False
        if inserted:
            run.entity, run.project = variables["entity"], variables["project"]
        run.wandb_config |= json.loads(variables["config"] or "{}")
        bucket = {"id": name, "name": name, "displayName": variables["displayName"], "project": _PROJECT}
        bucket |= {"config": json.dumps(run.wandb_config), "historyLineCount": len(run.history)}
        return {"inserted": inserted, "bucket": bucket}

    def __enter__(self) -> "FakeWandbServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.die()


_PROJECT = {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}}


def _resume_status(name: str, run: StoredRun) -> dict[str, Any]:
    """What a client must know to go on where the last one ended: how many lines there are, and the last of them."""
    history, events, log = (run.files.get(stream, []) for stream in (_HISTORY, _EVENTS, _LOG))
    return {
        "id": name,
        "name": name,
        "displayName": "run",
        "config": json.dumps(run.wandb_config),
        "wandbConfig": json.dumps({"t": run.wandb_config.get("_wandb", {}).get("value", {}).get("t", {})}),
        "summaryMetrics": (run.files.get("wandb-summary.json") or ["{}"])[-1],
        "tags": [],
        "notes": None,
        "historyLineCount": len(history),
        "eventsLineCount": len(events),
        "logLineCount": len(log),
        "historyTail": json.dumps(history[-1:]),
        "eventsTail": json.dumps(events[-1:]),
    }


class _Handler(BaseHTTPRequestHandler):
    # HTTP/1.0, the default: no connection outlives its request, so none outlives the server.

    def __init__(self, backend: FakeWandbServer, *arguments: Any) -> None:
        self._backend = backend
        super().__init__(*arguments)

    def do_POST(self) -> None:
        if not self.path.endswith(("/graphql", "/file_stream")):  # what wandb tells of its own use, compressed
            self._body()
            return self._answer("telemetry", {}, True)
        body = json.loads(self._body())
        operation = re.search(r"\b(?:query|mutation)\s+(\w+)", body.get("query", ""))
        key = base64.b64encode(f"api:{API_KEY}".encode()).decode()
        authorized = self.headers["Authorization"] == f"Basic {key}"
        self._answer(operation[1] if operation else self.path.split("/")[-1], body, authorized)

    def do_PUT(self) -> None:
        self._body()
        self._answer("upload", {}, True)

    def do_GET(self) -> None:
        self._answer("get", {}, True)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, kind: str, body: dict[str, Any], authorized: bool) -> None:
        status, answer = self._backend.answer(kind, self.path, body, authorized)
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
