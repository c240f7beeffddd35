"""The guided study runs from top to bottom, at toy size, and shows what it promises."""

from __future__ import annotations

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
    assert len(figures) == 4
