"""What a wheel and an sdist hold and say, and that the wheel works outside any clone."""

from __future__ import annotations

import email
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from tiny import ROOT

from nanoscale import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BASE = "torch numpy scipy pandas matplotlib rich click jinja2 pyyaml psutil packaging".split()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The wheel, as `pip wheel` builds it."""
    folder = tmp_path_factory.mktemp("dist")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The folder that the wheel was installed into."""
    folder = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(built).extractall(folder)
    return folder


def in_package(root: Path) -> set[str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)) for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_whole_and_what_has_a_name(installed):
    """Kernels without their headers do not build, and only a wheel's user would see it."""
    package = in_package(ROOT / "nanoscale")
    named = {f"shipped/config/{path.name}" for path in (ROOT / "config").glob("*.py")}
    named |= {f"shipped/studies/{path.name}" for path in (ROOT / "studies").glob("*.toml")}
    assert in_package(installed / "nanoscale") == package | named


def test_the_sdist_builds_the_same_wheel(tmp_path, installed):
    sdist = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = (path for path in tmp_path.iterdir() if path.is_dir())
    again = next(WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"]))
    assert set(zipfile.ZipFile(again).namelist()) == in_package(installed)


def test_what_the_wheel_says_of_itself(installed):
    (about,) = installed.glob("*.dist-info/METADATA")
    metadata = email.message_from_string(about.read_text(encoding="utf-8"))
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Project-URL"] is None  # no address yet
    assert metadata.get_payload().startswith("# nanoscale")
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert [re.match(r"[\w-]+", line).group() for line in required] == sorted(BASE)
    said = {line.rpartition(" ")[2] for line in metadata.get_all("Classifier") if "3." in line}
    assert said == {"3.11", "3.12", "3.13"}
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\n" in citation


def test_with_an_address_every_link_and_image_leads_there():
    specification = importlib.util.spec_from_file_location(
        "hatch_build", ROOT / "docs" / "hatch_build.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)

    address = "https://example.org/us/nanoscale"
    hook = module.CustomMetadataHook(str(ROOT), {"address": address})
    metadata: dict = {}
    hook.update(metadata)
    text = metadata["readme"]["text"]
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    links = re.findall(r"(?<!!)\]\((?!#)([^)]+)\)", text)
    assert len(images) >= 2
    assert all(image.startswith(f"{address}/raw/main/docs/") for image in images)
    assert all(link.startswith("https://") for link in links)
    assert all(url.startswith(address) for url in metadata["urls"].values())


def test_one_pin_of_torch():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "torch" in line]
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == pins


COMMANDS = {
    "init .": "study starter --dry-run",
    "data prepare synthetic": "data/synthetic",
    "params starter --dataset=synthetic": "hidden",
    "study quick --dry-run": "about",
    "train starter --dataset=synthetic --max_iters=2 --eval_iters=1": "COMPLETE",
    "sample --out_dir=out-starter --num_samples=1 --max_new_tokens=3": "---------------",
}


@pytest.mark.slow
def test_the_wheel_works_outside_a_clone(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    for command, said in COMMANDS.items():
        done = subprocess.run(
            [sys.executable, "-m", "nanoscale", *command.split()],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout, command
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {".gitignore", "config", "studies", "data", "out-starter"}
