"""What the pages for users hold: commands, Python, links. And `nst …` lines as the commands themselves read them."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import typer

from nst_apps.video.schedule import Schedule
from nst_core.cli import umbrella
from nst_trainer.checkpoint import read_plain_data

ROOT = Path(__file__).parents[2]

HISTORY = ("CHANGELOG.md", "dev/LOG.md")
"""Pages that tell what was: their commands were right in their time."""

PROGRAMS = re.compile(
    r"(nst|nst-(train|export|serve|bench)|make|docker|kubectl|curl|python3?|pip|torchrun|ray|aws|ffmpeg|openssl) [^…]*"
    r"|nst-(train|export|serve|bench)"
)
"""What begins a command in the middle of a sentence."""

SHELLS = ("sh", "bash", "console", "shell")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language and its lines."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Mention:
    """Code within a sentence."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@cache
def pages() -> list[str]:
    """Every page of the repository, by its path in it."""
    found = [*ROOT.glob("*.md"), ROOT / "model_repository" / "README.md"]
    for folder in ("core", "dev", "docs", "models"):
        found += (ROOT / folder).rglob("*.md")
    return sorted(str(path.relative_to(ROOT)) for path in found)


@cache
def blocks() -> list[Block]:
    """The fenced blocks of all pages that tell what is."""
    found = []
    for page in pages():
        if page in HISTORY:
            continue
        text = (ROOT / page).read_text()
        for match in _FENCE.finditer(text):
            indent = len(match[1])
            body = "".join(line[indent:] for line in match[3].splitlines(keepends=True))
            found.append(Block(page, _line(text, match.start()), match[2], body))
    return found


def shell_blocks() -> list[Block]:
    """What a user pastes into a shell; whole scripts are files of examples/ and are tested there."""
    return [block for block in blocks() if block.language in SHELLS and not block.text.startswith("#!")]


def python_blocks() -> list[Block]:
    """What a user pastes into a program; the files of examples/ begin with a docstring and are tested there."""
    return [block for block in blocks() if block.language == "python" and not block.text.startswith('"""')]


@cache
def mentions() -> list[Mention]:
    """Code within sentences, of all pages that tell what is."""
    found = []
    for page in pages():
        if page in HISTORY:
            continue
        text = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), (ROOT / page).read_text())
        for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
            found.append(Mention(page, _line(text, match.start()), " ".join(match[1].split())))
    return found


def mentioned_commands() -> list[Mention]:
    """Commands within sentences."""
    return [mention for mention in mentions() if PROGRAMS.fullmatch(mention.text)]


def lines_of(block: Block) -> list[str]:
    """The commands of a block, without comments, continued lines joined."""
    joined = block.text.replace("\\\n", " ")
    lines = (re.sub(r"(^|\s+)#\s.*$", "", line).strip() for line in joined.splitlines())
    return [" ".join(line.split()) for line in lines if line]


def links() -> Iterator[tuple[str, str]]:
    """`(page, target)` of every link and image that does not lead out of the repository."""
    for page in pages():
        text = _FENCE.sub("", (ROOT / page).read_text())
        text = re.sub(r"`[^`\n]+`", "", text)
        for match in re.finditer(r"\]\(([^)\s]+)\)|<(?:img|a)\b[^>]*?(?:src|href)=\"([^\"]+)\"", text):
            target = match[1] or match[2]
            if not re.match(r"[a-z]+:", target):
                yield page, target


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*?) *$", _FENCE.sub("", page.read_text()), re.MULTILINE):
        bare = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", bare).replace(" ", "-")
        number = sum(1 for other in found if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other))
        found.add(f"{anchor}-{number}" if anchor in found else anchor)
    return found


def extras() -> set[str]:
    """What may stand in `pip install '.[…]'`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


@cache
def shipped_styles() -> dict[str, tuple[str, ...]]:
    """The styles of each checkpoint in models/, by the file's name without its suffix."""
    return {path.stem: tuple(read_plain_data(path)["styles"]) for path in sorted((ROOT / "models").glob("*.pth"))}


def card(name: str) -> dict[str, str]:
    """The table of a shipped checkpoint's page, by what its rows are called."""
    page = (ROOT / "docs" / "styles" / f"{name}.md").read_text()
    return dict(re.findall(r"^\| ([A-Z][\w ]+) \| (.+) \|$", page, re.MULTILINE))


def simple_commands(line: str) -> list[list[str]]:
    """The words of each command of a line: parted at pipes and the like, without redirections.

    Raises `ValueError` for an open quote.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    skipped = False
    for word in lexer:
        if word and set(word) <= set("|&;()"):
            commands.append([])
        elif word and set(word) <= set("<>"):
            skipped = True
        elif skipped:
            skipped = False
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def nst_commands(line: str) -> list[list[str]]:
    """Those of a line that are nst's own, with `torchrun … -m nst_trainer` as the `nst-train` that it runs."""
    found = []
    for words in simple_commands(line):
        if "nst_trainer" in words:
            found.append(["nst-train", *words[words.index("nst_trainer") + 1 :]])
        elif re.fullmatch(r"nst(-\w+)?", words[0]):
            found.append(words)
    return found


@dataclass(frozen=True)
class Parsed:
    """What a command understood: its name, the values by parameter, those of its arguments, and what it lacks."""

    name: str
    values: dict[str, Any]
    arguments: tuple[Any, ...] = ()
    missing: str = ""


class Misread(Exception):
    """A command does not take what a page gives it."""


def parsed(words: list[str]) -> Parsed:
    """Have nst's own command read its words, without running it. Raises `Misread`."""
    name, *arguments = words
    if arguments[:1] in (["--install-completion"], ["--show-completion"]):  # reading them would install
        return Parsed(name, {})
    try:
        return _read(command(name), name, arguments)
    except Misread:
        raise
    except Exception as error:
        kind = type(error).__name__
        if kind in ("Exit", "NoArgsIsHelpError"):  # --help and --version; a group's name alone
            return Parsed(name, {})
        if kind == "MissingParameter" or "requires an argument" in str(error):
            return Parsed(name, {}, missing=str(error) or kind)
        message = getattr(error, "format_message", error.__str__)()
        raise Misread(f"{' '.join(words)}: {kind}: {message}") from error


def _read(command: Any, name: str, arguments: list[str], parent: Any = None) -> Parsed:
    """As Click goes from a group to its command, which Typer carries a copy of."""
    with command.make_context(name, list(arguments), parent=parent) as context:
        rest = [*getattr(context, "_protected_args", []), *context.args]
        if not hasattr(command, "commands") or not rest:
            values = dict(context.params)
            given = [
                values[parameter.name]
                for parameter in command.params
                if parameter.param_type_name == "argument" and parameter.name in values
            ]
            return Parsed(name, values, tuple(value for value in given if value))
        own, chosen, arguments = command.resolve_command(context, rest)
        return _read(chosen, f"{name} {own}", arguments, context)


def misnamed_styles(read: Parsed) -> set[str]:
    """Styles that a command names and that neither ship nor are trained on a page."""
    if read.name.rpartition(" ")[2] not in ("stylize", "video", "webcam", "batch") or not read.values.get("style"):
        return set()
    named = {name for weights in Schedule.of(read.values["style"]).style_weights for name in weights}
    known = {style for styles in shipped_styles().values() for style in styles} | set(shipped_styles())
    return named - known - {"painting", "woodcut"}


def options() -> set[str]:
    """Every long option of every command."""
    names: set[str] = set()
    waiting = [command(name) for name in ("nst", *_scripts())]
    while waiting:
        taken = waiting.pop()
        for parameter in taken.params:
            names.update(name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--"))
        waiting.extend(getattr(taken, "commands", {}).values())
    return names | {"--help"}


@cache
def command(name: str) -> Any:
    """The command that a user starts by this name. Raises `Misread`."""
    if name == "nst":
        return umbrella()
    if name not in _scripts():
        raise Misread(f"there is no command {name}")
    return _command(_scripts()[name])


@cache
def _scripts() -> dict[str, EntryPoint]:
    found = entry_points(group="console_scripts")
    return {entry.name: entry for entry in found if entry.name.startswith("nst-") and entry.value.startswith("nst_")}


def _command(entry: EntryPoint) -> Any:
    return typer.main.get_command(entry.load())


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
