"""W&B online, resumed and uploaded later, as a server sees it that speaks W&B's protocol.

It answers what wandb 0.31 asks and keeps what it is sent: history lines by their offsets.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny import PATIENCE, RUN, run_nanoscale, spec_maker

from nanoscale.store.files import write_json
from nanoscale.store.folder import RunFolder
from nanoscale.store.resume import open_folder

pytestmark = pytest.mark.soak
pytest.importorskip("wandb")

STOPPER = """
import os, signal
from nanoscale import register_tracker

class Stopper:
    def __init__(self, run):
        self.stopped = run.folder / "stopped"
    def row(self, step, numbers):
        if step == 6 and not self.stopped.exists():
            self.stopped.touch()
            os.kill(os.getpid(), signal.{how})
    def final(self, results): ...
    def close(self): ...

register_tracker("stopper", Stopper)
"""


class Server(ThreadingHTTPServer):
    """The runs by their ids: `history`, `summary`, `exit` and what names them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.is_gone = False

    def run(self, name: str) -> dict[str, Any]:
        return self.runs.setdefault(name, {"history": [], "summary": {}, "exit": None})

    def stream(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        run = self.run(name)
        for file, part in (body.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                lines = [json.loads(line) for line in part["content"]]
                run["history"][part["offset"] : part["offset"] + len(lines)] = lines
            elif file == "wandb-summary.json":
                run["summary"] = json.loads(part["content"][-1])
        if body.get("complete"):
            run["exit"] = body.get("exitcode")
        return {"exitcode": None, "limits": {}}

    def answer(self, query: str, values: dict[str, Any]) -> dict[str, Any]:
        name = values.get("name")
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}
        if "upsertBucket" in query:
            new = name not in self.runs
            run = self.run(name)
            run |= {key: values[key] for key in ("groupName", "displayName") if values.get(key)}
            bucket = {"id": name, "name": name, "config": "{}", "project": project}
            bucket["historyLineCount"] = len(run["history"])
            return {"upsertBucket": {"bucket": bucket, "inserted": new}}
        if "historyLineCount" in query:
            bucket = self.bucket(name) if name in self.runs else None
            return {"model": {"id": "p", "name": "p", "bucket": bucket}}
        if "viewer" in query:
            viewer = {"id": "u", "entity": "me", "username": "me", "email": "a@b.c", "flags": "{}"}
            return {"viewer": viewer | {"teams": {"edges": []}}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
        return {"serverInfo": {"features": []}}

    def bucket(self, name: str) -> dict[str, Any]:
        """What a run that is resumed is told of itself."""
        run = self.runs[name]
        return {
            "id": name,
            "name": name,
            "displayName": run["displayName"],
            "historyLineCount": len(run["history"]),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in run["history"][-1:]]),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(run["summary"]),
            "config": "{}",
            "wandbConfig": '{"t": {}}',
            "tags": [],
            "createdAt": "2026-01-01T00:00:00",
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.server.is_gone:
            self.close_connection = True
            return
        self.server.is_gone = self.path == "/gone"
        message = json.loads(body) if body else {}
        stream = re.search(r"/([^/]+)/file_stream$", self.path)
        if stream:
            self.reply(self.server.stream(stream[1], message))
        else:
            query, values = message.get("query", ""), message.get("variables") or {}
            self.reply({"data": self.server.answer(query, values)})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.reply({})

    def reply(self, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with closing(Server()) as server:
        server.close = server.server_close
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield server
        server.shutdown()


def stopped(how: str, data_root: Path, desk: Path) -> RunFolder:
    """The folder of a study's run that has not begun, and stops itself in row 6 by a signal."""
    (desk / "stopper.py").write_text(STOPPER.format(how=how))
    make = spec_maker(RUN | {"max_iters": 8, "eval_interval": 4}, data_root)
    folder = open_folder(
        desk / "run", make(wandb_log=True, trackers=str(desk / "stopper.py")), False
    )
    write_json(folder / "cell.json", {"study": "lrs", "cell": "seed=1"})
    return folder


def run(folder: RunFolder) -> int:
    return run_nanoscale("run", str(folder.path)).returncode


def assert_whole(server: Server, folder: RunFolder) -> None:
    """The run is one there, each step once with its loss, in its group, with its end."""
    ((name, there),) = server.runs.items()
    assert name == folder.spec().id
    assert [row["_step"] for row in there["history"]] == list(range(9))
    losses = {row["_step"]: row["train_loss"] for row in there["history"][1:]}
    assert losses == {row["step"]: row["train_loss"] for row in folder.rows()[1:]}
    assert (there["groupName"], there["displayName"], there["exit"]) == ("lrs", "seed=1", 0)
    assert there["summary"]["final/val_loss"] == folder.metrics()["val_loss"]


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_stopped_run_goes_on_online(how, server, data_root, tmp_path):
    folder = stopped(how, data_root, tmp_path)
    assert run(folder) == (-9 if how == "SIGKILL" else 130)
    assert run(folder) == 0
    assert_whole(server, folder)
    done = run_nanoscale("sync", str(folder.path), "--to=wandb", "--again")
    assert done.returncode == 0, done.stderr
    assert_whole(server, folder)


@pytest.mark.parametrize("uploaded", [True, False])
def test_a_stopped_run_is_uploaded_in_parts_or_at_once(
    uploaded, server, data_root, tmp_path, monkeypatch
):
    """What `wandb sync` has uploaded between two processes is put before the rest."""
    folder = stopped("SIGTERM", data_root, tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run(folder) == 130
    if uploaded:
        upload(folder)
        assert [row["_step"] for row in server.runs[folder.spec().id]["history"]] == list(range(7))
    assert run(folder) == 0
    assert len(list(folder.path.glob("wandb/offline-run-*"))) == 1 + uploaded
    upload(folder)
    assert_whole(server, folder)


def upload(folder: RunFolder) -> None:
    """`wandb sync` of the newest offline folder."""
    newest = max(folder.path.glob("wandb/offline-run-*"))
    command = [str(Path(sys.executable).with_name("wandb")), "sync", str(newest)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


AWAY = """
import os, urllib.request
from nanoscale import register_tracker

class Away:
    def __init__(self, run): ...
    def row(self, step, numbers):
        if step == 2:
            urllib.request.urlopen(os.environ["WANDB_BASE_URL"] + "/gone", data=b"")
    def final(self, results): ...
    def close(self): ...

register_tracker("away", Away)
"""


def test_a_server_that_goes_away_ends_no_run(server, data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "3")
    file = tmp_path / "away.py"
    file.write_text(AWAY)
    spec = spec_maker(RUN, data_root)(wandb_log=True, trackers=str(file))
    folder = open_folder(tmp_path / "run", spec, False)
    assert run(folder) == 0
    assert "warning: wandb has failed (TimeoutError" in (folder / "log.txt").read_text()
    assert list(folder.record("sent.json")) == ["away"]
