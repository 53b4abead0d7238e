"""Suites: each measures one thing, and brings its command, its place in a run, its tables and its plots.

Every module of `nst_bench/suites` defines a `SUITE`; there is no other list. The keyword parameters of its `measure`
and `resources` become the options of its command; a run fills in those whose names it knows.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar, get_origin, get_type_hints

from nst_core.devices import Device

Document = dict[str, Any]

VERSION = 2
"""Version of the documents' schemas; `upgrades` reads the earlier ones."""

Length = Literal["short", "default", "full", "further", "command"]
"""How long a suite measures: in a run of this length, for a further checkpoint of a run, or in its own command."""

FOLDER = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Effort:
    """How much a suite measures; each suite defines its own fields.

    `takes_time` names the fields that the duration is proportional to: seconds, or counts of at least two.
    """

    takes_time: ClassVar[tuple[str, ...]] = ()

    def scaled(self, share: float) -> Self:
        """Return the effort for a share (at most 1) of the time."""
        own = {name: getattr(self, name) for name in self.takes_time}
        less = {
            name: share * value if isinstance(value, float) else min(value, max(2, round(share * value)))
            for name, value in own.items()
        }
        return replace(self, **less)


E = TypeVar("E", bound=Effort)


@dataclass(frozen=True)
class Cost(Generic[E]):
    """An effort and its estimated duration in seconds; 0 if the device cannot measure it."""

    seconds: float
    effort: E


@dataclass(frozen=True)
class Context(Generic[E]):
    """What a suite measures on and how much, and its callbacks.

    `on_progress` takes progress messages, `keep` takes a document that is not complete yet. `machine` is the
    machine's description as in the document, with its peak rates.
    """

    device: Device
    effort: E
    on_progress: Callable[[str], None] = lambda note: None
    keep: Callable[[Document], None] = lambda document: None
    machine: Document = field(default_factory=dict)


@dataclass(frozen=True)
class Plot:
    """A plot: its file name without the suffix, its alternative text, and the PNG."""

    name: str
    alt: str
    png: bytes


Draw = Callable[[Mapping[str, Document], str], Plot | None]
"""Draws from a run's documents, by suite, and the machine's name; returns None if nothing to draw was measured."""


@dataclass(frozen=True)
class Suite(Generic[E]):
    """A measurement with its command, tables and plots.

    `measure(context, **options)` returns the figures, and `run` the complete document. `resources(context,
    **options)`, if given, opens what `measure` takes after the context, such as a running server. The keywords of both
    are the options of the suite's command. `check(context, **options)`, with options of `measure`, raises `InputError`
    before anything is opened. `tables(document)` renders the document as Markdown without the machine; `in_words`
    renders it as a phrase for a page's running text. `plots` draw from the documents of a run, by suite; with
    `plot_beside`, the suite's own command also writes the first of them beside its results. `failure` returns why that
    command exits with an error although it measured; `extra` is the extra of the package that the suite needs.

    `effort` is the effort of the suite's own command; `on_cpu` and `on_gpu` hold the cost by length of a run, and
    `command` where it differs from `effort`. A run consists of the suites that have a cost for its length, in the
    order of `rank`.
    """

    name: str
    title: str
    measure: Callable[..., Document]
    tables: Callable[[Document], list[str]]
    effort: E
    resources: Callable[..., AbstractContextManager[tuple[Any, ...]]] | None = None
    on_cpu: Mapping[Length, Cost[E]] = field(default_factory=dict)
    on_gpu: Mapping[Length, Cost[E]] = field(default_factory=dict)
    rank: int = 0
    plots: tuple[Draw, ...] = ()
    plot_beside: bool = False
    in_words: Callable[[Document], str] | None = None
    failure: Callable[[Document], str | None] | None = None
    check: Callable[..., None] | None = None
    extra: str = "bench"

    def cost(self, length: Length, device: Device) -> Cost[E] | None:
        """Return the cost in a run of this length on a device, or None if the suite is not part of it."""
        return (self.on_gpu if device.gpu else self.on_cpu).get(length)

    def effort_of_command(self, full: bool, device: Device) -> E:
        """Return what its own command measures on a device, with or without `--full`."""
        cost = self.cost("full" if full else "command", device)
        return cost.effort if cost else self.effort

    @property
    def has_full(self) -> bool:
        """Whether its command has `--full`."""
        return "full" in self.on_cpu and self.on_cpu["full"].effort != self.effort

    @property
    def options(self) -> list[inspect.Parameter]:
        """The options of `run`: the keywords of `resources` and of `measure`."""
        return [option for opener in (self.resources, self.measure) if opener for option in _keywords(opener)]

    @property
    def effort_options(self) -> list[inspect.Parameter]:
        """The fields of its effort that are options of its command."""
        hints = get_type_hints(type(self.effort), include_extras=True)
        return [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=getattr(self.effort, name))
            for name, hint in hints.items()
            if get_origin(hint) is Annotated
        ]

    def run(self, context: Context[E], **options: Any) -> Document:
        """Measure, and return the document: `schema`, `date`, `machine`, and what `measure` returns."""
        from nst_bench.machine.description import describe

        of_resources = [option.name for option in _keywords(self.resources)] if self.resources else []
        own = {name: options.pop(name) for name in of_resources if name in options}
        if self.check:
            self.check(context, **options)
        head: Document = {"schema": schema(self.name), "date": now(), "machine": describe()}
        whole = replace(context, machine=head["machine"], keep=lambda part: context.keep({**head, **part}))
        with ExitStack() as stack:
            opened = stack.enter_context(self.resources(whole, **own)) if self.resources else ()
            return {**head, **self.measure(whole, *opened, **options)}


def _keywords(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def schema(name: str) -> str:
    """Return the schema name of the documents of a suite, or of a `run`."""
    return f"nst-bench-{name}/{VERSION}"


def now() -> str:
    """Return the time as documents have it, such as `2026-11-24 18:30 UTC`."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def names() -> list[str]:
    """Return the names of all suites, sorted."""
    return sorted(path.stem.replace("_", "-") for path in FOLDER.glob("[!_]*.py"))


def load(name: str) -> Suite[Any]:
    """Import and return a suite by name."""
    suite: Suite[Any] = import_module(f"nst_bench.suites.{name.replace('-', '_')}").SUITE
    return suite


def description(name: str) -> str:
    """Return the help of a suite's command: the docstring of `measure`, read from the file since an import is slow."""
    tree = ast.parse((FOLDER / f"{name.replace('-', '_')}.py").read_text())
    measure = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "measure")
    return ast.get_docstring(measure) or ""
