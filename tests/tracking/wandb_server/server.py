"""The HTTP side: authorization, faults, GraphQL, the file stream, uploads."""

import gzip
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from wandb_server.faults import Fault
from wandb_server.graphql import Answers, Refused, key_of
from wandb_server.held import Held

KEY = "local-" + "0123456789" * 4


class WandbServer:
    """A server on a loopback port, which keeps its port and what it holds over `stop` and `start`."""

    def __init__(self) -> None:
        self.held, self.faults, self.requests = Held(), list[Fault](), list[tuple[float, str, Any]]()
        self.port, self.date, self.unknown = 0, "", list[str]()
        self.answers = Answers(self.held, lambda: self.url)
        self._http: _Listener | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self._http is not None

    def start(self) -> None:
        self._http = _Listener(("127.0.0.1", self.port), _Handler)
        self._http.server, self.port = self, self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def fault(self, **of: Any) -> Fault:
        self.faults.append(Fault(**of))
        return self.faults[-1]

    def kinds(self) -> list[str]:
        return [kind for _, kind, _ in self.requests]


class _Listener(ThreadingHTTPServer):
    server: WandbServer
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that the other side has cut."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing: the requests are kept."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self._of.date or super().date_time_string(timestamp)

    @property
    def _of(self) -> WandbServer:
        return cast("_Listener", self.server).server

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            sent = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
            name = sent.get("operationName") or (found[1] if found else "Viewer")  # older clients ask so for the key
            given = sent.get("variables") or {}
            self._serve(name, lambda: {"data": self._of.answers.answer(name, sent["query"], given)}, given)
        elif self.path.endswith("/file_stream"):
            sent = json.loads(body)
            self._serve("file_stream", lambda: self._stream(sent), sent)
        else:
            self._send(404, {"error": f"no {self.path}"})

    def do_GET(self) -> None:
        found = self._of.held.uploads.get(self.path.removeprefix("/upload/"))
        self._send(404 if found is None else 200, json.loads(found or b"{}"))

    def do_PUT(self) -> None:
        body = self._body()
        self._serve("upload", lambda: self._take(body))

    def _take(self, body: bytes) -> dict[str, Any]:
        held, name = self._of.held, self.path.removeprefix("/upload/")
        with held.lock:
            held.uploads[name] = body
            if name.startswith("manifest/"):
                held.artifacts[name.removeprefix("manifest/")].manifest = json.loads(body)
        return {}

    def _stream(self, sent: dict[str, Any]) -> dict[str, Any]:
        held, name = self._of.held, self.path.split("/")[-2]
        with held.lock:
            if name not in held.runs:
                raise Refused(404, f"run {name} not found")
            held.stream(held.runs[name], sent)
        return {"exitcode": None, "limits": {}}

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _serve(self, kind: str, work: Any, sent: Any = None) -> None:
        self._of.requests.append((time.monotonic(), kind, sent))
        fault = next((each for each in self._of.faults if each.meets(kind)), None)
        if kind != "upload" and key_of(self.headers.get("Authorization", "")) != KEY:
            return self._send(401, {"errors": [{"message": "invalid API key"}]})
        if fault is not None:
            if fault.taken:
                work()
            time.sleep(fault.delay_s)
            if fault.cut:
                self.close_connection = True
                self.connection.close()
                return None
            if fault.status is not None:
                return self._send(fault.status, {"errors": [{"message": fault.message}]}, fault.headers)
        try:
            return self._send(200, work())
        except Refused as refusal:
            self._of.unknown += [str(refusal)] if refusal.status == 400 else []
            return self._send(refusal.status, {"errors": [{"message": str(refusal)}]})

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
