"""A table of any spelling gives the runs it holds, or one line: never others."""

from __future__ import annotations

import gzip
import importlib.util
import json

import pandas as pd
import pytest
from refusals import refusal

from nanoscale.experiments.tables import notes_of, number_at, read_table

RUNS = [{"N": 1234567.0, "D": 2e9, "loss": 2.35}, {"N": 64.0, "D": 1.5e9, "loss": 3.125}]


def frame() -> pd.DataFrame:
    return pd.DataFrame(RUNS)


SAME = {
    "comma.csv": "N,D,loss\n1234567,2e9,2.35\n64,1.5e9,3.125\n",
    "semicolon.csv": "N;D;loss\n1234567;2e9;2.35\n64;1.5e9;3.125\n",
    "tab.tsv": "N\tD\tloss\n1234567\t2e9\t2.35\n64\t1.5e9\t3.125\n",
    "bar.txt": "N|D|loss\n1234567|2e9|2.35\n64|1.5e9|3.125\n",
    "spaces.dat": "N      D    loss\n1234567 2e9   2.35\n64 1.5e9 3.125\n",
    "padded.csv": "N, D, loss \n1234567 , 2e9, 2.35\n64, 1.5e9, 3.125\n",
    "german.csv": "N;D;loss\n1.234.567;2E+09;2,35\n64;1,5E9;3,125\n",
    "quoted.csv": '"N","D","loss"\n"1,234,567","2,000,000,000",2.35\n"64","1,500,000,000",3.125\n',
    "grouped.tsv": "N\tD\tloss\n1,234,567\t2e9\t2.35\n64\t1.5e9\t3.125\n",
    "spaced.csv": "N;D;loss\n1 234 567;2\u202f000\u202f000\u202f000;2,35\n64;1,5e9;3,125\n",
    "comments.csv": "# last week\nN,D,loss\n1234567,2e9,2.35\n# the small one\n\n64,1.5e9,3.125\n",
    "savetxt.txt": "# N D loss\n1.234567e+06 2e+09 2.35\n64 1.5e9 3.125\n",
    "excels.csv": "sep=;\r\nN;D;loss\r\n1234567;2e9;2.35\r\n64;1.5e9;3.125\r\n",
    "mark.csv": "\ufeffN,D,loss\n1234567,2e9,2.35\n64,1.5e9,3.125\n",
    "trailing.csv": "N,D,loss,\n1234567,2e9,2.35,\n64,1.5e9,3.125,\n,,,\n",
    "trailing_rows.csv": "N,D,loss\n1234567,2e9,2.35,\n64,1.5e9,3.125,\n",
    "index.csv": frame().to_csv(),
    "array.json": json.dumps(RUNS, indent=1),
    "lines.jsonl": "\n".join(map(json.dumps, RUNS)) + "\n\n",
    "columns.json": json.dumps(frame().to_dict("list")),
    "pandas.json": frame().to_json(),
}
NESTED = [{"config": {"N": row["N"]}, "D": row["D"], "loss": row["loss"]} for row in RUNS]


def same(table: pd.DataFrame) -> bool:
    numbers = table.astype(float)
    return list(table.columns) == ["N", "D", "loss"] and numbers.to_dict("records") == RUNS


@pytest.mark.parametrize("name", SAME)
def test_a_text_is_read_however_it_is_written(tmp_path, name):
    (tmp_path / name).write_bytes(SAME[name].encode())
    assert same(read_table(tmp_path / name))
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(SAME[name].encode()))
    assert same(read_table(tmp_path / f"{name}.gz"))


def test_nested_values_have_dotted_names(tmp_path):
    (tmp_path / "n.json").write_text(json.dumps(NESTED))
    assert list(read_table(tmp_path / "n.json")) == ["config.N", "D", "loss"]
    pytest.importorskip("pyarrow")
    pd.DataFrame(NESTED).to_parquet(tmp_path / "n.parquet")
    assert list(read_table(tmp_path / "n.parquet")) == ["config.N", "D", "loss"]


def test_a_named_index_is_a_column(tmp_path):
    pytest.importorskip("pyarrow")
    frame().set_index("N").to_parquet(tmp_path / "t.parquet")
    assert same(read_table(tmp_path / "t.parquet"))
    frame().to_parquet(tmp_path / "t.parquet")
    assert same(read_table(tmp_path / "t.parquet"))


def test_an_excel_file_has_one_sheet(tmp_path):
    pytest.importorskip("openpyxl")
    with pd.ExcelWriter(tmp_path / "t.xlsx") as book:
        frame().to_excel(book, sheet_name="runs", index=False)
        pd.DataFrame().to_excel(book, sheet_name="empty", index=False)
    assert same(read_table(tmp_path / "t.xlsx"))
    with pd.ExcelWriter(tmp_path / "t.xlsx") as book:
        frame().to_excel(book, sheet_name="runs")
        frame().to_excel(book, sheet_name="old")
    assert "the sheets runs, old" in refusal(read_table, tmp_path / "t.xlsx")
    whole = (tmp_path / "t.xlsx").read_bytes()
    for content in (whole[:-40], whole[: len(whole) // 2]):
        (tmp_path / "t.xlsx").write_bytes(content)
        assert "cannot be read as a table" in refusal(read_table, tmp_path / "t.xlsx")


def test_text_that_is_no_number_stays(tmp_path):
    (tmp_path / "t.csv").write_text('arm;N\n"a,b";1,5\nc 123;2\n')
    table = read_table(tmp_path / "t.csv")
    assert table.to_dict("list") == {"arm": ["a,b", "c 123"], "N": ["1.5", "2"]}


def test_what_a_file_is_follows_from_its_content(tmp_path):
    text = SAME["semicolon.csv"]
    zipped = gzip.compress(text.encode())
    written = {
        "twice.csv.gz.gz": gzip.compress(zipped),
        "unnamed.csv": zipped,
        "not_zipped.csv.gz": text.encode(),
        "excels_unicode.txt": SAME["tab.tsv"].encode("utf-16"),
    }
    pytest.importorskip("pyarrow")
    frame().to_parquet(tmp_path / "t.parquet")
    written["parquet.csv"] = (tmp_path / "t.parquet").read_bytes()
    written["t.parquet.gz"] = gzip.compress(written["parquet.csv"])
    if importlib.util.find_spec("openpyxl"):
        frame().to_excel(tmp_path / "t.xlsx", index=False)
        written["excel.csv"] = (tmp_path / "t.xlsx").read_bytes()
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
        assert same(read_table(tmp_path / name)), name


@pytest.mark.parametrize("mark", ["\n", "\u2028", "\x0b", "\x85"])
def test_a_cell_may_hold_what_other_programs_break_lines_at(tmp_path, mark):
    quote = '"' if mark == "\n" else ""
    text = f"N,{quote}of{mark}it{quote}\r\n1,{quote}a{mark}b{quote}\r\n"
    (tmp_path / "t.csv").write_text(text, newline="")
    assert read_table(tmp_path / "t.csv").to_dict("list") == {
        "N": ["1"],
        f"of{mark}it": [f"a{mark}b"],
    }


def test_runs_that_are_comments_are_said(tmp_path):
    (tmp_path / "t.csv").write_text("N,loss\n# all of them\n1,2\n#7,2.5\n#8,2.4\n")
    (said,) = notes_of(read_table(tmp_path / "t.csv"))
    assert said == "2 lines after # (line 4) with the cells of a run: skipped, as comments are"
    (tmp_path / "t.csv").write_text("N,loss\n# all of them, so\n1,2\n")
    assert notes_of(read_table(tmp_path / "t.csv")) == []


@pytest.mark.parametrize("cell", [True, [2.5, 2.4], {"a": 1}, "True"])
def test_a_cell_of_another_kind_is_no_number(cell):
    assert "row 1: loss=" in refusal(number_at, 0, "loss", cell)
    assert "row r7: loss=" in refusal(number_at, "r7", "loss", cell)  # a frame's own label


@pytest.mark.parametrize(("text", "words"), [
    ("N,loss\n1,2,3\n", "line 2 has 3 cells where the first has 2 names"),
    ("N,loss\n1,2\n\n# no\n1\n", "line 5 has 1 cell where the first has 2 names"),
    ("N;loss\n1,234;2,345\n", "1,234 may be 1234 or 1.234"),
    ("N;loss\n1.234;2,35\n", "1.234 may be 1234 or 1.234"),
    ("N;loss\n0.5;2,35\n", "2,35 and 0.5 write numbers in two ways"),
    ("1e6,2.5\n2e6,2.4\n", "its first line holds numbers"),
    ("N,loss,loss\n1,2,3\n", "'loss' stands twice"),
    (",N\n7,8\n", "line 1: column 1 has no name"),
    ("# nothing\n\n", "empty; a table has"),
    (",,\n1,2,3\n", "line 1 is blank where the columns' names are wanted"),
    ('N,loss\n"1,2\n', "unexpected end of data"),
])  # fmt: skip
def test_what_may_be_two_things_is_refused(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    assert words in refusal(read_table, tmp_path / "t.csv")


@pytest.mark.parametrize(("name", "content", "words"), [
    ("t.json", b'[{"N": 1}, 2]', "must be a JSON object"),
    ("t.json", b'{"N": [1, 2], "loss": [3]}', "its columns differ in length"),
    ("t.jsonl", b'{"N": 1}\n{"N":\n', "line 2: Expecting value"),
    ("t.jsonl", b'{"N": 1, "N": 2}\n', "'N' stands twice"),
    ("t.json", b'{"a.b": 1, "a": {"b": 2}}', "'a.b' stands twice"),
    ("t.csv", "N\n\xe9\n".encode("latin-1"), "save it as UTF-8"),
    ("t.csv", "N,loss\n1,2\n".encode("utf-16-le"), "NUL bytes, which no text has; save it as"),
    ("t.csv", gzip.compress(b"N,loss\n1,2\n", mtime=0)[:-4], "end-of-stream"),
    ("t.csv.gz", gzip.compress(b"N,loss\n1,2\n", mtime=0)[:-4], "end-of-stream"),
    ("t.csv.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 40, "invalid block type"),
    ("t.parquet", b"PAR1", "cannot be read as a table"),
    ("t.xlsx", b"PK", "cannot be read as a table"),
])  # fmt: skip
def test_what_is_no_table_is_refused(tmp_path, name, content, words):
    pytest.importorskip("pyarrow")
    pytest.importorskip("openpyxl")
    (tmp_path / name).write_bytes(content)
    assert words in refusal(read_table, tmp_path / name)
