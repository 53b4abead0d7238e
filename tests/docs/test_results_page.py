"""The page of benchmark results names every key of the documents that are committed, in the section of their suite."""

import re
from typing import Any

import pytest

from nst_bench import results, suite

from .pages import ROOT

SUMMARY = {"n", "median", "p95", "p99", "minimum", "maximum", "spread", "unstable", "median_precision", "samples"}
NAMES = {"arguments", "errors", "trends", "packages", "style_by_layer", "batches", "machine"}
"""Objects whose keys are names and not terms."""

SECTIONS = {
    part.partition("\n")[0]: part
    for part in re.split(r"^## ", (ROOT / "docs" / "reference" / "benchmark-results.md").read_text(), flags=re.M)[1:]
}
FILES = sorted((ROOT / "docs" / "benchmark").glob("*.json"))


def keys(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(keys, value))
    if not isinstance(value, dict):
        return set()
    return set(value) | set().union(*(keys(inner) for name, inner in value.items() if name not in NAMES))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_key_is_explained(file: Any) -> None:
    for own in results.measured(results.read(file)).values():
        name = results.suite_of(own)
        text = SECTIONS["Every document"] + SECTIONS[name]
        text += SECTIONS["latency"] * ("as in latency" in text)
        terms = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
        assert keys(own) - terms - SUMMARY == set(), name


def test_every_suite_has_its_section() -> None:
    assert set(suite.names()) == set(SECTIONS) - {"Every document"}
