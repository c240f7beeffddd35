"""A hub of data sets on this machine: the few requests that `datasets` makes, from a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlparse

COMMIT = "a" * 40


class Handler(BaseHTTPRequestHandler):
    """Answers from `root/OWNER/NAME`, which is the same at every commit."""

    root: Path
    newest = COMMIT
    asked: ClassVar[set[str]] = set()  # the commits of what was read
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def answer(self, content: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, what: str) -> None:
        self.answer(b"{}", 404, X_Error_Code=what, X_Error_Message=what)

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[0] == "datasets" and len(parts) > 5:
            self.asked.add(parts[4])
            self.give_file(self.root.joinpath(*parts[1:3], *parts[5:]), parts[4])
        elif parts[:2] != ["api", "datasets"]:
            self.missing("EntryNotFound")
        elif not self.root.joinpath(*parts[2:4]).is_dir():
            self.missing("RepoNotFound")
        elif parts[4:5] == ["tree"]:
            self.give_listing(self.root.joinpath(*parts[2:4]), "/".join(parts[6:]))
        elif parts[4:5] == ["revision"] and parts[5] == "x":
            self.missing("RevisionNotFound")
        else:
            commit = parts[5] if len(parts) > 5 and parts[5] != "main" else self.newest
            self.answer(json.dumps({"id": "/".join(parts[2:4]), "sha": commit}).encode())

    do_HEAD = do_GET

    def give_file(self, path: Path, commit: str) -> None:
        if not path.is_file():
            self.missing("EntryNotFound")
            return
        content = path.read_bytes()
        about = {"ETag": hashlib.sha1(content).hexdigest(), "X_Repo_Commit": commit}
        wanted = self.headers.get("Range")
        if wanted is None or self.command == "HEAD":
            self.answer(content, **about)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        end = min(int(last or len(content)) + 1, len(content))
        about["Content_Range"] = f"bytes {first}-{end - 1}/{len(content)}"
        self.answer(content[int(first) : end], 206, **about)

    def give_listing(self, repository: Path, below: str) -> None:
        if not (repository / below).is_dir():
            self.missing("EntryNotFound")
            return
        entries = []
        for path in sorted((repository / below).iterdir()):
            kind = "directory" if path.is_dir() else "file"
            name = path.relative_to(repository).as_posix()
            entries.append(
                {"type": kind, "oid": "0" * 40, "size": path.stat().st_size, "path": name}
            )
        self.answer(json.dumps(entries).encode())


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """The address of a hub that has the data sets of a folder."""
    Handler.root = root
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
