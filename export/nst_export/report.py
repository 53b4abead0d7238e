"""`verification.json`, in the folder of every published version: how it was made and verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA = "nst-verification/3"

REPORT_NAME = "verification.json"


def read_report(path: Path) -> dict[str, Any]:
    """Read the document at `path`, also of earlier schemas, with the keys of `SCHEMA`.

    Raises `OSError`, and `ValueError`, `KeyError`, `TypeError` or `AttributeError` for any other file.
    """
    document: dict[str, Any] = json.loads(path.read_text())
    if document["schema"] == "nst-verification/2":
        _from_schema_2(document)
    return document


def report_text(document: dict[str, Any]) -> str:
    """Return the document as the text of the file."""
    return json.dumps(document, indent=1) + "\n"


def _from_schema_2(document: dict[str, Any]) -> None:
    """Convert schema 2, in which tolerances and differences had other names (`limits`, `levels`)."""
    for part in (document, document["engine"]):
        if part is not None:
            limits = part.pop("limits")
            part["tolerance"] = {"max_difference": limits["levels"], "psnr": limits["psnr"]}
    for check in document["checks"]:
        for old in ("maximum", "mean", "quantile"):
            new = "max_difference" if old == "maximum" else f"{old}_difference"
            check[new] = check.pop(old)
        check.setdefault("judged", True)
    document["schema"] = SCHEMA
