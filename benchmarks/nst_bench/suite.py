"""What a suite is: one question, with its command, its place in a run, its tables and its plot, in one object.

Every file of `nst_bench/suites` is a suite and ends with its `SUITE`; nothing else lists them. The keywords of its
`measure` and `resources` are the options of its command; a run fills in those that it knows by their names.
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
"""Of the documents' schemas; `upgrades` reads the earlier ones."""

Length = Literal["short", "default", "full", "further", "command"]
"""How long a suite measures: in a run of this length, for a further checkpoint of a run, or by its own command."""

FOLDER = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Effort:
    """How much a suite measures; each suite has its own kind.

    `takes_time` names the fields that its time grows with: seconds, or counts of two or more.
    """

    takes_time: ClassVar[tuple[str, ...]] = ()

    def scaled(self, share: float) -> Self:
        """The effort for a share (at most 1) of the time."""
        own = {name: getattr(self, name) for name in self.takes_time}
        less = {
            name: share * value if isinstance(value, float) else min(value, max(2, round(share * value)))
            for name, value in own.items()
        }
        return replace(self, **less)


E = TypeVar("E", bound=Effort)


@dataclass(frozen=True)
class Cost(Generic[E]):
    """An effort, and about how many seconds it takes; 0 for what this device cannot measure."""

    seconds: float
    effort: E


@dataclass(frozen=True)
class Context(Generic[E]):
    """How a suite measures: its device, its effort, and whom it tells.

    `on_progress` takes notes of what is done, `keep` a document that is not complete yet. `machine` is the document's
    own description of it, with the rates that bound all figures.
    """

    device: Device
    effort: E
    on_progress: Callable[[str], None] = lambda note: None
    keep: Callable[[Document], None] = lambda document: None
    machine: Document = field(default_factory=dict)


@dataclass(frozen=True)
class Plot:
    """A plot: its file's name without the ending, what it shows in words, and the PNG."""

    name: str
    alt: str
    png: bytes


Draw = Callable[[Mapping[str, Document], str], Plot | None]
"""A plot of a run's documents, by suite, and the machine's name; None where nothing for it was measured."""


@dataclass(frozen=True)
class Suite(Generic[E]):
    """A question to this machine.

    `measure(context, **options)` returns what was measured, and `run` the document with it. `resources(context,
    **options)`, if any, opens what `measure` gets behind its context, such as a running server. Their keywords are the
    options of its command. `check(context, **options)` of `measure` raises `InputError` before anything is opened.
    `tables(document)` is that document in Markdown, without its machine, and `in_words` is for a page's running text.
    `plots` draw what they find in the documents of a run, by suite; `plot_beside`: the first of them also beside the
    file of the suite's own command. `failure` says why that command ends with an error, although it has measured;
    `extra` has the packages that it needs.

    `effort` is that of the suite's own command; `on_cpu` and `on_gpu` say what each length of a run costs, and have
    `command` where that is another than `effort`. A suite is in the runs that it has a cost for, which go by `rank`.
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
        """Of a run of some length on a device; None if the suite is not in it."""
        return (self.on_gpu if device.gpu else self.on_cpu).get(length)

    def effort_of_command(self, full: bool, device: Device) -> E:
        """What its own command measures on a device, with or without `--full`."""
        cost = self.cost("full" if full else "command", device)
        return cost.effort if cost else self.effort

    @property
    def has_full(self) -> bool:
        """Whether its command can measure longer, by `--full`."""
        return "full" in self.on_cpu and self.on_cpu["full"].effort != self.effort

    @property
    def options(self) -> list[inspect.Parameter]:
        """What `run` can be given: the keywords of `resources` and of `measure`."""
        return [option for opener in (self.resources, self.measure) if opener for option in _keywords(opener)]

    @property
    def effort_options(self) -> list[inspect.Parameter]:
        """The fields of its effort that a user can set."""
        hints = get_type_hints(type(self.effort), include_extras=True)
        return [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=getattr(self.effort, name))
            for name, hint in hints.items()
            if get_origin(hint) is Annotated
        ]

    def run(self, context: Context[E], **options: Any) -> Document:
        """Measure: `schema`, `date` and `machine`, and what `measure` returns. `options` go by their names."""
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
    """Of the documents of a suite, or of a `run`."""
    return f"nst-bench-{name}/{VERSION}"


def now() -> str:
    """As documents have it, `2026-11-24 18:30 UTC`."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def names() -> list[str]:
    """The suites that are here."""
    return sorted(path.stem.replace("_", "-") for path in FOLDER.glob("[!_]*.py"))


def load(name: str) -> Suite[Any]:
    """A suite by its name."""
    suite: Suite[Any] = import_module(f"nst_bench.suites.{name.replace('-', '_')}").SUITE
    return suite


def description(name: str) -> str:
    """What a suite's command does: its `measure`'s docstring, read from the file, since an import takes seconds."""
    tree = ast.parse((FOLDER / f"{name.replace('-', '_')}.py").read_text())
    measure = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "measure")
    return ast.get_docstring(measure) or ""
