"""The PromQL of `deploy/`, and the series that it reads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/nst.json").read_text())
    return document


def scaling() -> str:
    """The query that decides how many servers there are."""
    (trigger,) = yaml.safe_load((DEPLOY / "kubernetes/base/autoscaling.yaml").read_text())["spec"]["triggers"]
    query: str = trigger["metadata"]["query"]
    return query


def queries() -> list[str]:
    """All of them, with what Grafana puts in for its variables."""
    shown = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [scaling(), *map(filled, shown)]


def filled(query: str) -> str:
    """A panel's query with something in place of Grafana's variables."""
    return query.replace("$__rate_interval", "1m").replace("$model", ".*")


def series(query: str) -> set[tuple[str, frozenset[str]]]:
    """Names of the series that a query reads, each with the labels that it asks for or sums by."""
    return set(_selected(promql_parser.parse(query), frozenset()))


def _selected(node: Any, grouped: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        grouped |= frozenset(node.modifier.labels)
    selector = getattr(node, "vector_selector", node)
    if isinstance(selector, promql_parser.VectorSelector):
        yield selector.name or "", grouped | {matcher.name for matcher in selector.matchers.matchers}
        return
    for part in ("expr", "lhs", "rhs"):
        if (child := getattr(node, part, None)) is not None:
            yield from _selected(child, grouped)
    for child in getattr(node, "args", None) or ():
        yield from _selected(child, grouped)
