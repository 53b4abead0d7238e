"""What a suite is: one question, with its command, its place in a run, its tables and its plot, in one object.

Every file of `nst_bench/suites` is a suite and ends with its `SUITE`; nothing else lists them. The parameters of a
suite's `measure` behind its `Context` are the options of its command, and a run fills in those that it knows by their
names.
"""

from __future__ import annotations

import ast
import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Self, TypeVar, get_origin, get_type_hints

from nst_core.devices import Device

if TYPE_CHECKING:
    from nst_bench.plots import Plot
    from nst_bench.served.server import ModelServer
    from nst_trainer.checkpoint import Checkpoint

Document = dict[str, Any]

Length = Literal["short", "default", "full", "further", "command"]
"""How long a suite measures: in a run of this length, for a further checkpoint of a run, or by its own command."""

FOLDER = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Effort:
    """How much a suite measures; each suite has its own kind."""

    def scaled(self, share: float) -> Self:
        """The effort for a share (at most 1) of the time."""
        return self


E = TypeVar("E", bound=Effort)


@dataclass(frozen=True)
class Cost(Generic[E]):
    """An effort, and about how many seconds it takes; 0 for what this device cannot measure."""

    seconds: float
    effort: E


@dataclass(frozen=True)
class Context(Generic[E]):
    """How a suite measures: its device, its effort, and whom it tells.

    `on_progress` takes notes of what is done, `keep` a document that is not complete yet.
    """

    device: Device
    effort: E
    on_progress: Callable[[str], None] = lambda note: None
    keep: Callable[[Document], None] = lambda document: None


Draw = Callable[[Mapping[str, Document], str], "Plot | None"]
"""A plot of a run's documents, by suite, and the machine's name; None where nothing for it was measured."""


@dataclass(frozen=True)
class Suite(Generic[E]):
    """A question to this machine.

    `measure(context, **options)` returns a document: `schema`, `date`, `machine`, and what was measured.
    `tables(document)` is that document in Markdown, without its machine; `tables_beside` has columns for documents of
    GPUs, and `in_words` is for a page's running text. `plots` draw what they find in the documents of a run, by suite;
    `plot_beside`: the first of them also beside the file of the suite's own command. `failure` says why that command
    ends with an error, although it has measured; `extra` has the packages that it needs.

    `effort` is that of the suite's own command; `on_cpu` and `on_gpu` say what each length of a run costs, and have
    `command` where that is another than `effort`. A suite is in the runs that it has a cost for, which go by `rank`.
    """

    name: str
    title: str
    measure: Callable[..., Document]
    tables: Callable[[Document], list[str]]
    effort: E
    on_cpu: Mapping[Length, Cost[E]] = field(default_factory=dict)
    on_gpu: Mapping[Length, Cost[E]] = field(default_factory=dict)
    rank: int = 0
    plots: tuple[Draw, ...] = ()
    plot_beside: bool = False
    tables_beside: Callable[[Document, Sequence[Document]], list[str]] | None = None
    in_words: Callable[[Document], str] | None = None
    failure: Callable[[Document], str | None] | None = None
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
        """Of its command: the parameters of `measure` behind its context, and the annotated fields of its effort."""
        own = list(inspect.signature(self.measure, eval_str=True).parameters.values())[1:]
        return [*own, *self.effort_options]

    @property
    def effort_options(self) -> list[inspect.Parameter]:
        """The fields of its effort that a user can set."""
        hints = get_type_hints(type(self.effort), include_extras=True)
        return [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=getattr(self.effort, name))
            for name, hint in hints.items()
            if get_origin(hint) is Annotated
        ]


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


@contextmanager
def served_model(
    model: str, repository: Path, width: float | None, triton: Path, context: Context[Any]
) -> Iterator[ModelServer]:
    """A Triton with the model of the repository, or with an untrained network of `width`."""
    from nst_bench.served.exported import ExportedModel, export_checkpoint, untrained_checkpoint
    from nst_bench.served.server import serve_model
    from nst_server.installation.triton import find_triton

    with tempfile.TemporaryDirectory() as scratch:
        if width is not None:
            repository = Path(scratch) / "model_repository"
            untrained = untrained_checkpoint(width)
            model = export_checkpoint(untrained, repository, context.device, say=context.on_progress)
        ExportedModel(repository / model).check_device(context.device)
        installation = find_triton(triton, context.on_progress, device=context.device)
        with serve_model(installation, repository, model) as running:
            yield running


@contextmanager
def served_checkpoint(
    checkpoint: Path, repository: Path, width: float | None, triton: Path, context: Context[Any]
) -> Iterator[tuple[Checkpoint, ModelServer]]:
    """A checkpoint, and a Triton with what the repository has of it; or both of an untrained network of `width`."""
    from nst_bench.served.exported import ExportedModel, untrained_checkpoint
    from nst_trainer.checkpoint import load as load_checkpoint

    if width is None:
        ExportedModel(repository / checkpoint.stem).check_source(checkpoint)
    trained = load_checkpoint(checkpoint) if width is None else untrained_checkpoint(width)
    with served_model(checkpoint.stem, repository, width, triton, context) as running:
        yield trained, running
