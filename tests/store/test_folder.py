"""The run folder: whole files or none, torn rows ignored, a dead owner recognised."""

from __future__ import annotations

import builtins
import errno
import json
import math
import os
from pathlib import Path

import pytest
from tiny import run_python, tiny_config, tiny_spec

from nanoscale.errors import UserError
from nanoscale.spec.identity import RunSpec
from nanoscale.store import folder as records
from nanoscale.store import lease
from nanoscale.store.files import (
    atomic_write,
    cut_rows,
    plain,
    read_json,
    read_rows,
    row_line,
    write_json,
    write_text,
)
from nanoscale.store.folder import (
    COMPLETE,
    RUNNING,
    WAITING,
    RunFolder,
    parent_of,
    parse_branch,
    run_spec,
)

DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def failing(error: BaseException):
    def call(*_: object, **__: object) -> None:
        raise error

    return call


# --- two that make one folder --------------------------------------------------------------------


def test_a_folder_that_another_process_is_making_is_not_made_twice(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with lease.take(folder.path):  # as if it were another's
        with pytest.raises(lease.Held):
            folder.create(tiny_spec())
        assert not folder.exists()
    folder.create(tiny_spec())
    assert names(folder.path) == ["config.json"]


def test_who_comes_second_leaves_what_the_first_has_made(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    take = lease.take

    def late(path: Path) -> lease.Lease:
        monkeypatch.setattr(lease, "take", take)
        RunFolder(path).create(tiny_spec())
        (path / "config.json").chmod(0o600)
        return take(path)

    monkeypatch.setattr(lease, "take", late)
    folder.create(tiny_spec())
    assert (folder / "config.json").stat().st_mode & 0o777 == 0o600


# --- atomic files ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["replace", "fsync"])
def test_a_write_that_fails_late_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where):
    write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, where, failing(DISK_FULL))
    with pytest.raises(UserError, match="no space left"):
        write_text(tmp_path / "a.json", "new")
    assert names(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.mark.parametrize("error", [DISK_FULL, KeyboardInterrupt(), ValueError("x")])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    write_text(tmp_path / "a", "old")

    def half_a_write() -> None:
        with atomic_write(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(UserError if error is DISK_FULL else type(error)):
        half_a_write()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("point", ["replace", "fsync"])
def test_a_process_killed_while_writing_leaves_the_old_file_whole(tmp_path, point):
    write_json(tmp_path / "a.json", {"old": 1})
    script = (
        f"import os\nos.{point} = lambda *a: os._exit(9)\n"
        "from pathlib import Path\nfrom nanoscale.store.folder import write_json\n"
        "write_json(Path('a.json'), {'new': 2})"
    )
    assert run_python("-c", script, cwd=tmp_path).returncode == 9
    assert read_json(tmp_path / "a.json") == {"old": 1}


@pytest.mark.parametrize("refusals", [3, 100])
def test_a_file_that_another_process_has_open_is_waited_for_a_moment(
    tmp_path, monkeypatch, refusals
):
    """As Windows refuses to replace one, and to read one that is being replaced."""
    tries: list[str] = []
    real = {"replace": os.replace, "read": Path.read_text}

    def busy(which):
        def call(*args, **named):
            tries.append(which)
            if tries.count(which) <= refusals:
                raise PermissionError(errno.EACCES, "it is open")
            return real[which](*args, **named)

        return call

    monkeypatch.setattr("nanoscale.store.files.BUSY_SECONDS", (0.0,) * 5)
    monkeypatch.setattr(os, "replace", busy("replace"))
    monkeypatch.setattr(Path, "read_text", busy("read"))
    if refusals == 3:
        write_json(tmp_path / "a.json", {"a": 1})
        assert read_json(tmp_path / "a.json") == {"a": 1}
        assert (tries.count("replace"), tries.count("read")) == (4, 4)
        return
    with pytest.raises(UserError, match="permission denied; choose a folder you may write to"):
        write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "a.json")
    assert names(tmp_path) == []


def test_lines_end_alike_on_every_system(tmp_path, monkeypatch):
    """Seals are known by their bytes."""
    monkeypatch.setattr(os, "linesep", "\r\n")
    write_text(tmp_path / "a", "one\ntwo\n")
    assert (tmp_path / "a").read_bytes() == b"one\ntwo\n"
    seen = []
    monkeypatch.setattr(Path, "write_text", lambda path, text, **how: seen.append(how))
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "b", "text")
    assert seen == [{"encoding": "utf-8", "newline": "\n"}]


def test_the_new_file_is_on_disk_before_it_takes_the_olds_place(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    write_text(tmp_path / "a", "text")
    assert order == ["fsync", "replace"]


def test_json_is_exact_and_what_is_no_number_is_null(tmp_path):
    value = {"a": 0.1 + 0.2, "b": [1e-320, -0.0, 2**63], "c": "ä\n", "d": None, "e": True}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert plain({"x": math.inf, 3: (math.nan, [-math.inf, 1.0])}) == {
        "x": None,
        "3": [None, [None, 1.0]],
    }
    assert json.loads(row_line({"loss": math.nan, "step": 1})) == {"loss": None, "step": 1}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"not json", b"[" * 9999])
def test_broken_json_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def test_missing_json_and_a_folder_in_its_place_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


# --- rows --------------------------------------------------------------------------------------


def rows_file(folder: Path) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(row_line({"step": s, "loss": 1 / (s + 3)}) for s in range(1, 6)))
    return path


def test_a_torn_last_line_is_ignored_wherever_it_tore(tmp_path):
    path = rows_file(tmp_path)
    whole = path.read_bytes()
    last = len(whole[:-1].rsplit(b"\n", 1)[0]) + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        assert [r["step"] for r in read_rows(path)] == [1, 2, 3, 4]
    path.write_bytes(whole)
    assert [r["step"] for r in read_rows(path)] == [1, 2, 3, 4, 5]
    assert read_rows(path)[2]["loss"] == 1 / 6


def test_no_file_and_an_empty_file_have_no_rows(tmp_path):
    assert read_rows(tmp_path / "none") == []
    (tmp_path / "empty").write_bytes(b"")
    assert read_rows(tmp_path / "empty") == []


@pytest.mark.parametrize(
    "row",
    ["null", "[]", "{}", "3", '{"step": "1"}', '{"step": 1, "val_loss": []}', "[" * 2000, "NaN"],
)
def test_a_row_that_is_none_is_refused(tmp_path, row):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0}}\n{row}\n{{"step": 2, "val_loss": null}}\n')
    with pytest.raises(UserError, match=r"broken row .*line 2"):
        read_rows(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(path)


def test_a_broken_row_in_the_middle_is_refused(tmp_path):
    path = rows_file(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"step":2', b'"step:2'))
    with pytest.raises(UserError, match="broken row"):
        read_rows(path)


@pytest.mark.parametrize("torn", [b"", b'{"step":6,"lo'])
def test_rows_after_a_step_are_cut_byte_for_byte(tmp_path, torn):
    path = rows_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + torn)
    cut_rows(path, 5)
    assert path.read_bytes() == b"".join(lines)
    cut_rows(path, 3)
    assert path.read_bytes() == b"".join(lines[:3])
    cut_rows(path, 0)
    assert path.read_bytes() == b""
    assert names(tmp_path) == ["metrics.jsonl"]


def test_a_cut_that_fails_keeps_every_row(tmp_path, monkeypatch):
    path = rows_file(tmp_path)
    monkeypatch.setattr(os, "replace", failing(DISK_FULL))
    with pytest.raises(UserError):
        cut_rows(path, 2)
    assert len(read_rows(path)) == 5


# --- the folder --------------------------------------------------------------------------------


def test_a_new_folder_holds_the_run_and_waits(tmp_path):
    spec = tiny_spec()
    folder = RunFolder(tmp_path / "runs" / "a")
    assert not folder.exists()
    folder.create(spec)
    assert folder.exists()
    assert names(folder.path) == ["config.json"]
    assert folder.spec() == spec
    assert folder.state() == WAITING
    status = folder.status()
    assert (status.id, status.step, status.max_iters, status.checkpoint_step) == (
        spec.id,
        0,
        10,
        None,
    )
    assert folder.rows() == []
    assert folder.metrics() is None


def test_creating_the_same_run_again_leaves_it_as_it_is(tmp_path):
    folder = RunFolder(tmp_path / "a")
    folder.create(tiny_spec())
    folder.set_status(state=COMPLETE, step=10)
    write_json(folder / "metrics.json", {})
    folder.create(tiny_spec())
    assert (folder.state(), folder.status().step) == (COMPLETE, 10)


def test_running_means_a_living_process(tmp_path):
    folder = RunFolder(tmp_path / "a")
    folder.create(tiny_spec())
    write_json(folder / "metrics.json", {})
    with folder.take():
        assert folder.state() == RUNNING
        folder.set_status(state=COMPLETE)
        assert folder.state() == COMPLETE
        folder.set_status(state=RUNNING)
    assert folder.state() == WAITING


BROKEN = {
    "config.json": ["", "[]", '{"config": {}}'],
    "status.json": ["", '{"state": "COM', "[]", "null", '"COMPLETE"', "\udc80", "{}"],
    "metrics.json": ["", "[1]", "3", None],
}
BROKEN["status.json"] += [
    f'{{"state": {state}, "step": {step}, "max_iters": 10}}'
    for state, step in (('"DONE"', 1), ("3", 1), ('"COMPLETE"', '"1"'), ('"COMPLETE"', "null"))
]


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name in BROKEN for content in BROKEN[name]]
)
def test_records_that_cannot_be_read_are_a_failure_and_no_result(tmp_path, name, content):
    folder = RunFolder(tmp_path / "a")
    folder.create(tiny_spec())
    folder.set_status(state=COMPLETE, step=10, checkpoint_step=10)
    write_json(folder / "metrics.json", {"val_loss": 2.0})
    assert (folder.state(), folder.damage()) == (COMPLETE, "")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    status = folder.status()
    assert (folder.state(), folder.metrics()) == ("FAILED", None)
    assert (status.kind, status.reason) == ("damaged", folder.damage())
    assert name in status.reason
    (folder / "ckpt.pt").touch()
    with pytest.raises(UserError, match=name):
        parent_of(str(folder.path))


@pytest.mark.parametrize("left", ["metrics.json", "ckpt.pt"])
def test_a_run_whose_status_is_gone_waits_for_nobody(tmp_path, left):
    folder = RunFolder(tmp_path / "a")
    folder.create(tiny_spec())
    assert (folder.state(), folder.damage()) == (WAITING, "")
    (folder / left).touch()
    assert folder.state() == "FAILED"
    assert folder.damage("the moon") == "status.json is gone; the moon mends it"


def test_a_disk_that_cannot_be_read_is_no_damage_of_the_run(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "a")
    folder.create(tiny_spec())
    folder.set_status(state=WAITING)
    monkeypatch.setattr(Path, "read_text", failing(OSError(errno.EIO, "input/output error")))
    with pytest.raises(UserError, match="cannot be read"):
        folder.state()


def test_the_record_of_a_run_is_what_design_says(tmp_path):
    spec = RunSpec(tiny_config(mode="muP"), {"n_layer": "2"}, "tiny", "f" * 64, "abc@7")
    folder = RunFolder(tmp_path / spec.name)
    folder.create(spec)
    record = read_json(folder / "config.json")
    assert record["id"] == spec.id
    assert folder.path.name == f"tiny-L2-d16-adamw-muP-{spec.id}".replace("tiny", "openwebtext")
    assert record["typed"] == {"n_layer": "2"}
    assert record["data"] == {"name": "tiny", "fingerprint": "f" * 64}
    assert record["branch_from"] == "abc@7"
    assert record["config"]["parametrization"]["mode"] == "muP"
    assert folder.spec() == spec


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["config"].update(n_layer=3),
        lambda r: r["data"].update(fingerprint="g"),
        lambda r: r.update(id="0" * 10),
        lambda r: r.pop("id"),
        lambda r: r.pop("config"),
        lambda r: r.update(config=None),
        lambda r: r["config"].update(n_layer="2"),
        lambda r: r["config"].update(new_knob=1),
        lambda r: r.update(branch_from="abc@7"),
        lambda r: r["config"].update(parametrization={"mod": "SP"}),
        lambda r: r.pop("typed"),
    ],
)
def test_an_edited_record_is_refused(tmp_path, change):
    folder = RunFolder(tmp_path)
    folder.create(tiny_spec())
    record = read_json(folder / "config.json")
    change(record)
    write_json(folder / "config.json", record)
    with pytest.raises(UserError):
        folder.spec()
    write_json(folder / "config.json", [])
    with pytest.raises(UserError, match="not a run's config"):
        folder.spec()


def test_an_edit_of_what_is_not_identity_is_no_edit(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create(tiny_spec())
    record = read_json(folder / "config.json")
    record["config"]["log_interval"] = 7
    write_json(folder / "config.json", record)
    assert folder.spec().config.log_interval == 7


# --- what refuses to be written ----------------------------------------------------------------


def check_refused(folder: RunFolder, root: Path, words: str) -> None:
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match=words):
        folder.create(tiny_spec())
    assert sorted(root.rglob("*")) == before


def test_a_file_in_the_way_is_refused_and_left(tmp_path):
    (tmp_path / "file").write_text("precious")
    check_refused(RunFolder(tmp_path / "file"), tmp_path, "a file stands")
    check_refused(RunFolder(tmp_path / "file" / "a" / "b"), tmp_path, "a file stands")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_name_too_long_is_refused(tmp_path):
    check_refused(RunFolder(tmp_path / "new" / ("x" * 300)), tmp_path, "shorter name")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_an_unwritable_place_is_refused(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "mkdir", failing(OSError(code, os.strerror(code))))
    check_refused(RunFolder(tmp_path / "a" / "b"), tmp_path, "cannot write")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    check_refused(RunFolder(tmp_path / "a" / "b"), tmp_path, "may write")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("existing", [False, True])
def test_a_disk_that_fills_while_creating_leaves_nothing(tmp_path, monkeypatch, existing):
    folder = RunFolder(tmp_path / "a" / "b")
    if existing:
        folder.path.mkdir(parents=True)
    monkeypatch.setattr(records, "write_json", failing(UserError("full")))
    check_refused(folder, tmp_path, "full")


def test_a_failed_creation_never_takes_a_neighbour_with_it(tmp_path, monkeypatch):
    folder, write = RunFolder(tmp_path / "new" / "b"), records.write_json

    def neighbour_then_full(path: Path, value: object) -> None:
        monkeypatch.setattr(records, "write_json", write)
        RunFolder(tmp_path / "new" / "neighbour").create(tiny_spec(seed=2))
        raise UserError("full")

    monkeypatch.setattr(records, "write_json", neighbour_then_full)
    with pytest.raises(UserError, match="full"):
        folder.create(tiny_spec())
    assert names(tmp_path / "new") == ["neighbour"]
    assert RunFolder(tmp_path / "new" / "neighbour").spec() == tiny_spec(seed=2)


def test_reading_a_folder_needs_no_write_access(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.create(tiny_spec())
    opened, really = [], builtins.open
    monkeypatch.setattr(
        builtins,
        "open",
        lambda p, mode="r", *a, **k: (opened.append(mode), really(p, mode, *a, **k))[1],
    )
    monkeypatch.setattr(os, "replace", failing(DISK_FULL))
    assert (folder.state(), folder.rows(), folder.metrics()) == (WAITING, [], None)
    folder.spec()
    assert not any(set(mode) & set("wax+") for mode in opened)


# --- branches ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "folder", "step"),
    [
        ("runs/a", "runs/a", None),
        ("runs/a@100", "runs/a", 100),
        ("a@b", "a@b", None),
        ("a@b@7", "a@b", 7),
        ("a@", "a@", None),
        ("a@-1", "a@-1", None),
    ],
)
def test_a_branch_is_a_folder_and_maybe_a_step(text, folder, step):
    assert parse_branch(text) == (Path(folder), step)


def test_a_parent_is_named_by_its_id_and_step(tmp_path):
    folder = RunFolder(tmp_path / "a")
    folder.create(tiny_spec())
    for branch in (str(folder.path), f"{folder.path}@5", "nowhere", "nowhere@5"):
        with pytest.raises(UserError, match="no checkpoint there"):
            parent_of(branch)
    folder.set_status(checkpoint_step=8)
    (folder / "ckpt.pt").touch()
    (folder / "ckpt-5.pt").touch()
    assert parent_of(str(folder.path)) == f"{tiny_spec().id}@8"
    assert parent_of(f"{folder.path}@5") == f"{tiny_spec().id}@5"
    facts = {"name": "tiny", "fingerprint": "d" * 64, "vocabulary": lambda wanted: wanted}
    facts |= {"val_sets": ("val",), "parts": {}}
    data = type("Data", (), facts)
    child = run_spec(tiny_config(branch_from=f"{folder.path}@5"), data, {})
    assert child.parent == f"{tiny_spec().id}@5"
    assert child.id != tiny_spec().id


def test_a_file_is_synced_through_a_handle_that_may_write(tmp_path, monkeypatch):
    """Windows refuses to sync what was opened to read."""
    fcntl = pytest.importorskip("fcntl")
    modes = []
    real = os.fsync

    def watched(handle):
        modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)
        real(handle)

    monkeypatch.setattr(os, "fsync", watched)
    write_text(tmp_path / "file", "text")
    assert modes == [os.O_RDWR]
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which none can be made")
def test_a_folder_that_cannot_be_made_is_refused():
    with pytest.raises(UserError, match=r"cannot make /proc/nope/run: .* choose another folder"):
        RunFolder("/proc/nope/run").create(tiny_spec())
