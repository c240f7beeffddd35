"""A study's page as it runs: on this machine alone, nothing else, whatever a file is like now."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path

import fake_worker
import pytest
from fake_worker import TINY
from tiny import ROOT

from nanoscale.__main__ import main
from nanoscale.experiments import ExperimentRunner, Study
from nanoscale.experiments.local import ForkServer
from nanoscale.experiments.worker import Worker
from nanoscale.store.folder import COMPLETE, RUNNING, WAITING, RunFolder
from nanoscale.studies import live
from nanoscale.studies.live import page_text, server_of


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """The folder of a study, whose three runs wait after an update or two."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    fake_worker.make_dataset(tmp_path)
    backend = ForkServer(Worker(entry="fake_worker:main", preload=()))
    made = ExperimentRunner(backend=backend).run_grid("toy", TINY, {"seed": [1, 2, 3]})
    for folder in folders(made.folder):
        folder.set_status(state=WAITING, step=0)
        (folder / "metrics.jsonl").unlink()
    return made.folder


def folders(study: Path) -> list[RunFolder]:
    return [folder for _, folder in Study.open(study).runs()]


def rows(folder: RunFolder, *losses: float) -> None:
    with open(folder / "metrics.jsonl", "a") as file:
        for step, loss in enumerate(losses, start=1):
            row = {"step": step, "train_loss": loss, "tokens_seen": 16 * step}
            file.write(json.dumps(row | {"tokens_per_second": 8.0}) + "\n")


def asked(server, path: str = "/", host: str | None = None) -> tuple[int, str]:
    """Status and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    headers = {} if host is None else {"Host": host}
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


@pytest.fixture
def server(study):
    with server_of(study) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_only_the_page_is_served_and_only_here(server):
    assert server.server_address[0] == "127.0.0.1"
    status, text = asked(server)
    assert status == 200
    assert "0 of 3 runs have ended" in text
    assert '<meta http-equiv="refresh" content="5">' in text
    for path in ("/study.json", "/../study.json", "/report.html", "//etc/passwd", "/?x"):
        assert asked(server, path)[0] == 404
    assert asked(server, host="elsewhere.example")[0] == 403
    assert asked(server, host=f"elsewhere.example:{server.server_port}")[0] == 403


@pytest.mark.slow
def test_the_page_shows_what_runs_and_how_far_it_is(study, monkeypatch):
    first, second, _ = folders(study)
    rows(first, 3.0, 2.5)
    states = {first.path: RUNNING}
    monkeypatch.setattr(live, "state_of", lambda folder: states.get(folder.path, "WAITING"))
    first.set_status(state=RUNNING, step=2, max_iters=5)
    text = page_text(study)
    assert "0 of 3 runs have ended, 1 is running; about " in text
    assert "Training loss of every run so far" in text
    assert "RUNNING" in text
    rows(second, 3.0)
    with open(second / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "train_lo')  # torn
    assert "Training loss" in page_text(study)


@pytest.mark.slow
def test_at_its_end_the_page_says_the_answer(study):
    for folder in folders(study):
        folder.set_status(state=COMPLETE)
    assert "its page:" not in page_text(study)  # it has not been concluded
    (study / "answer.json").write_text(json.dumps({"lines": ["the best is 3", "and more"]}))
    page = page_text(study)
    assert '<p class="law words">the best is 3</p>' in page
    assert f"its page: {study / 'report.html'}" in page
    folders(study)[0].set_status(state=WAITING)
    assert "the best is 3" not in page_text(study)


@pytest.mark.slow
def test_a_killed_run_does_not_run_and_a_torn_study_is_said(study):
    first, *_ = folders(study)
    rows(first, 3.0)
    first.set_status(state=RUNNING, step=1, max_iters=5)  # which nobody holds
    text = page_text(study)
    assert "0 of 3 runs have ended, none is running" in text
    assert "RUNNING" not in text
    whole = (study / "study.json").read_text()
    (study / "study.json").write_text(whole[: len(whole) // 2])
    assert "study.json" in page_text(study)
    (study / "study.json").write_text(whole)
    assert "0 of 3 runs" in page_text(study)


def test_what_cannot_be_served_is_refused(study, server, capsys):
    assert main(["report", "--serve"]) == 2
    assert "--serve shows one study: name it" in capsys.readouterr().err
    assert main(["report", "toy", "--port=80"]) == 2
    assert "--port=80 is of --serve" in capsys.readouterr().err
    assert main(["report", "toy", "--serve", f"--port={server.server_port}"]) == 2
    said = capsys.readouterr().err
    assert "leave it out for one that is free" in said
