"""Find out how to add an optional part to this installation of nst."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NAME = "nst"


def install_command(extra: str) -> str:
    """Return the command that adds the packages of `extra`, such as `pip install '/src/nst[web]'`.

    It names the source that nst was installed from: a folder, an archive, or a repository (`direct_url.json`, PEP 610).
    The name alone is not enough, since nst is on no package index. If the source is unknown, it is `/path/to/nst`.
    """
    tool, origin = "pip", {}
    with suppress(PackageNotFoundError):
        distribution = Distribution.from_name(NAME)
        with suppress(ValueError):
            origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if (distribution.read_text("INSTALLER") or "").strip() == "uv":
            tool = "uv pip"
    return f"{tool} install {_requirement(origin, extra) or shlex.quote(f'/path/to/{NAME}[{extra}]')}"


def _requirement(origin: dict[str, Any], extra: str) -> str:
    """Return pip's requirement for the source in a `direct_url.json`; empty if it is unknown or gone."""
    url = str(origin.get("url", ""))
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        folder = f"#subdirectory={origin['subdirectory']}" if "subdirectory" in origin else ""
        return shlex.quote(f"{NAME}[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}{folder}")
    if not url.startswith("file:"):
        return url and shlex.quote(f"{NAME}[{extra}] @ {url}")
    path = Path(unquote(urlsplit(url).path))
    editable = "--editable " if origin.get("dir_info", {}).get("editable") else ""
    return editable + shlex.quote(f"{path}[{extra}]") if path.exists() else ""
