"""The metadata that hang on where the repository stands: its urls, the README's links and images.

`address` in pyproject.toml is the one place that says it. While it is empty nothing points
anywhere, and the README is as it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = r"(?!\w+:|#)([^)\s]+)"  # a target that is no address and no place on the page


class CustomMetadataHook(MetadataHookInterface):
    """Called by hatchling for every wheel and sdist."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add `readme` and `urls`."""
        root = Path(self.root)
        text = (root / "README.md").read_text(encoding="utf-8")
        address = self.config.get("address", "")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, address) if address else text,
        }
        metadata["urls"] = urls(address) if address else {}


def absolute(text: str, address: str) -> str:
    """A page whose images and links lead to the repository at `address`."""
    text = re.sub(rf"!\[([^\]]*)\]\({RELATIVE}\)", rf"![\1]({address}/raw/main/\2)", text)
    return re.sub(rf"\]\({RELATIVE}\)", rf"]({address}/blob/main/\1)", text)


def urls(address: str) -> dict[str, str]:
    """What a package index shows beside the page."""
    return {
        "Homepage": address,
        "Documentation": f"{address}/tree/main/docs",
        "Changelog": f"{address}/blob/main/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }
