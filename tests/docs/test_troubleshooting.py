"""The messages on the page of troubleshooting are messages of the code."""

import re

import pytest

from .pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
PACKAGES = ("core", "trainer", "export", "server", "client", "apps", "benchmarks")
# Parts of a text that Python joins, and what an f-string puts in, are one text for the user.
SOURCES = "\n".join(
    re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize(
    "message",
    [
        message
        for heading in re.findall(r"^### (`.*)$", PAGE, re.MULTILINE)
        for message in re.findall(r"`([^`]+)`", heading)
    ],
)
def test_a_message_is_one_of_the_code(message: str) -> None:
    assert message in SOURCES, f"no message has {message!r} any more"
