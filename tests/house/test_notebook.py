"""The guided study runs from top to bottom, at toy size, and shows what it promises."""

from __future__ import annotations

import re

import nbformat
import pytest
from nbclient import NotebookClient
from tiny import PATIENCE, ROOT

from nanoscale.data.prepare import prepare


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the notebook machinery itself
def test_scaling_studies_notebook(tmp_path, monkeypatch):
    data = prepare("synthetic", out=tmp_path / "synthetic")
    for name, value in {
        "NANOSCALE_TOY": "1",
        "NANOSCALE_DATASET": str(data),
        "NANOSCALE_OUTPUT": str(tmp_path / "out"),
        "PYTHONPATH": str(ROOT),
    }.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "scaling_studies.ipynb", as_version=4)
    notebook.metadata.kernelspec.name = "python3"
    client = NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    figures = [o for o in outputs if {"image/png", "image/svg+xml"} & set(o.get("data", {}))]
    assert "L(C) = " in text
    assert text.count("lowest mean val_loss") == 4  # two batches, depth, and the grid of both
    assert re.search(r"ten times the compute lowers the loss|these runs do not show", text)
    shown = [o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})]
    assert sum("/4 done" in html or "/8 done" in html for html in shown) >= 2  # replaced as it ran
    assert len(figures) == 4
