"""What the pages say, held against the commands, the checkpoints and the files that there are; nothing is run."""

import json
import re
from itertools import pairwise

import pytest

from nst_core.shipped import shipped_styles as by_name
from nst_trainer.checkpoint import load, read_plain_data

from .pages import (
    ROOT,
    Block,
    Mention,
    Misread,
    anchors,
    card,
    extras,
    lines_of,
    links,
    mentioned_commands,
    mentions,
    misnamed_styles,
    nst_commands,
    options,
    pages,
    parsed,
    shell_blocks,
    shipped_styles,
    simple_commands,
)

MEASURED = ("tiny",)
"""Networks that a page says it measured, and that do not ship."""

OTHERS = {
    "--backend-config": "tritonserver",
    "--cpuset-cpus": "docker run",
    "--grpc-max-connection-age": "tritonserver",
    "--http-max-input-size": "tritonserver",
    "--preload": "gunicorn",
    "--ipc=host": "docker run",
    "--ulimit": "docker run",
    "--nproc-per-node": "torchrun",
    "--node-rank": "torchrun",
    "--constraint": "pip",
    "--extra-index-url": "pip",
    "--master-addr": "torchrun",
    "--master-port": "torchrun",
}
"""Options within sentences that are not nst's, and whose they are."""

PLACEHOLDERS = {"PRICE": "0.05", "S": "starry-night-fast", "N": "64"}
"""What a page writes where the reader puts a value of his own."""


def filled(words: list[str]) -> list[str]:
    return [PLACEHOLDERS.get(word, word) for word in words]


@pytest.mark.parametrize("block", shell_blocks(), ids=str)
def test_every_command_of_a_block_is_understood(block: Block) -> None:
    """By the command itself: its options, their values, its styles; and nothing is missing."""
    for line in lines_of(block):
        for words in nst_commands(line):
            read = parsed(filled(words))
            assert not read.missing, f"{line}: {read.missing}"
            assert not misnamed_styles(read), f"{line}: no shipped model has these styles"


@pytest.mark.parametrize("page", sorted({mention.page for mention in mentioned_commands()}))
def test_every_command_within_a_sentence_is_understood(page: str) -> None:
    """It may be the name alone, or lack what the sentence is not about."""
    wrong = []
    for mention in (mention for mention in mentioned_commands() if mention.page == page):
        text = mention.text.removesuffix(" ...").replace("://...", "://server:8001")
        for words in nst_commands(text):
            try:
                styles = misnamed_styles(parsed(filled(words))) - set(MEASURED)
            except Misread as error:
                wrong.append(f"{mention}: {error}")
            else:
                wrong += [f"{mention}: no shipped model has the style {style}" for style in styles]
    assert not wrong, "\n".join(wrong)


def test_every_option_within_a_sentence_exists() -> None:
    known = options() | set(OTHERS)
    named = [(mention, re.match(r"--[a-z][\w-]*(=host)?", mention.text)) for mention in mentions()]
    wrong = [str(mention) for mention, option in named if option and option[0] not in known]
    assert not wrong, "\n".join(wrong)


def test_every_style_within_a_sentence_ships() -> None:
    """`--style a:0.5,b:0.5`, which is a part of a command."""
    parts = [mention for mention in mentions() if mention.text.startswith("--style ")]
    for part in parts:
        words = ["nst", "stylize", "a.jpg", "-o", "b.jpg", *part.text.split(" ", 1)]
        assert not misnamed_styles(parsed(words)), f"{part}: no shipped model has these styles"


def test_every_target_of_make_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    for text in [mention.text for mention in mentioned_commands()] + [
        line for block in shell_blocks() for line in lines_of(block)
    ]:
        if match := re.match(r"make (\S+)(.*)", text):
            assert match[1] in phony.split(), f"{text}: the Makefile has no such target"
            for variable in re.findall(r"(\w+)=", match[2]):
                assert f"$({variable})" in makefile or f"{variable} ?=" in makefile, f"{text}: no such variable"


def test_what_pip_installs_can_be_installed() -> None:
    """nst is on no package index: it is installed from its folder, and the extras are those that it has."""
    found = [mention for mention in mentions() if "pip install" in mention.text]
    found += [
        Mention(block.page, block.line, line)
        for block in shell_blocks()
        for line in lines_of(block)
        if "pip install" in line
    ]
    assert found
    for mention in found:
        assert not re.search(r"install ['\"]?nst(?!-[0-9.]+-py3-none-any\.whl)\b", mention.text), (
            f"{mention}: nst is on no package index"
        )
        for names in re.findall(r"\.\[([^]]*)\]", mention.text):
            assert set(names.split(",")) <= extras(), f"{mention}: the extras are {', '.join(sorted(extras()))}"
    for mention in mentions():
        if match := re.fullmatch(r"(?:nst|\.)\[([\w,-]+)\]", mention.text):
            assert set(match[1].split(",")) <= extras(), f"{mention}: the extras are {', '.join(sorted(extras()))}"


def test_every_checkpoint_and_script_that_a_command_names_is_there() -> None:
    texts = [mention.text for mention in mentions()] + [line for block in shell_blocks() for line in lines_of(block)]
    for text in texts:
        for name in re.findall(
            r"(?<![\w/.-])((?:models|dev|deploy|examples)/[\w./-]+\.(?:pth|py|sh|yaml|yml))\b", text
        ):
            assert (ROOT / name).exists(), f"{text}: {name} is not in the repository"


def test_what_docker_and_kubectl_are_given_is_there() -> None:
    """Files and folders, the stages of the Dockerfile, the profiles of Compose."""
    images, services = ((ROOT / "deploy" / name).read_text() for name in ("Dockerfile", "compose.yaml"))
    checks = {
        "-f": lambda value: (ROOT / value).is_file(),
        "-k": lambda value: (ROOT / value / "kustomization.yaml").is_file(),
        "--target": lambda value: f" AS {value}\n" in images,
        "--profile": lambda value: f"profiles: [{value}]" in services,
    }
    seen = set()
    for block in shell_blocks():
        for words in (words for line in lines_of(block) for words in simple_commands(line)):
            for option, value in pairwise(words) if words[0] in ("docker", "kubectl") else ():
                if option in checks:
                    assert checks[option](value), f"{block}: {option} {value}"
                    seen.add(option)
    assert seen == set(checks)


def test_every_link_leads_somewhere() -> None:
    found = list(links())
    assert len(found) > 100
    wrong = []
    for page, target in found:
        name, _, fragment = target.partition("#")
        if "reference/commands/" in name:  # dev/command_reference.py draws them; mkdocs --strict checks the links
            continue
        file = ((ROOT / page).parent / name) if name else ROOT / page
        if not file.exists():
            wrong.append(f"{page}: {target}: no such file")
        elif fragment and fragment not in anchors(file):
            wrong.append(f"{page}: {target}: no such heading")
    assert not wrong, "\n".join(wrong)


def test_the_page_of_models_lists_what_ships() -> None:
    """And every checkpoint has a card with an image, and a row in the gallery of cards."""
    page, gallery = ((ROOT / name).read_text() for name in ("models/README.md", "docs/styles/index.md"))
    for name in shipped_styles():
        assert f"`{name}.pth`" in page
        assert f"[{name}]({name}.md)" in gallery and f"(../pictures/styles/thumbnails/{name}.jpg)" in gallery
        assert f"(../pictures/styles/{name}.jpg)" in (ROOT / "docs" / "styles" / f"{name}.md").read_text()


@pytest.mark.parametrize("name", shipped_styles())
def test_a_card_says_what_the_checkpoint_holds(name: str) -> None:
    rows, path, shipped = card(name), ROOT / "models" / f"{name}.pth", by_name()[name]
    checkpoint, photographs = load(path), read_plain_data(path)["training"]["photos"]
    parameters = sum(parameter.numel() for parameter in checkpoint.network.parameters())
    assert rows["Network"].lower().startswith(checkpoint.network.name)
    assert rows["Network"].endswith(f": {parameters:,} parameters")
    assert f"width {checkpoint.network.arguments['width']:g}" in rows["Network"]
    assert rows["File"] == f"{path.stat().st_size / 1000:,.0f} kB, FP16"
    assert rows["Training photographs"].startswith(f"{photographs:,}, " if photographs else "none")
    if shipped.artist:
        title = shipped.title.removesuffix(" for video")
        assert rows["Style image"] == f"{shipped.artist}, *{title}*, {shipped.year}"
    if len(checkpoint.styles) > 1:
        page = (ROOT / "docs" / "styles" / f"{name}.md").read_text()
        assert tuple(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == checkpoint.styles
    elif not photographs:
        loss, style = (read_plain_data(path)["metrics"][f"held out {term}"] for term in ("total", "style"))
        assert rows["Loss"] == f"{loss:.2f}, held out; of it style {style:.2f}"


def test_a_card_says_what_was_measured() -> None:
    """Where the results that are committed have it."""
    results = json.loads((ROOT / "docs" / "benchmark" / "results.json").read_text())["suites"]["quality"]
    found = results["equivalent_iterations"]
    equivalent = f"{found['median']:g} ({found['minimum']}\N{EN DASH}{found['maximum']})"
    assert card(results["model"]["name"])["Equivalent iterations"] == equivalent
    rows = json.loads((ROOT / "docs" / "benchmark" / "frontier.json").read_text())["rows"]
    measured = [row for row in rows if row["name"] in shipped_styles()]
    assert measured
    for row in measured:
        on_card = card(row["name"])
        assert on_card["Equivalent iterations"].startswith(f"{row['equivalent_iterations']:g} (")
        assert on_card["Loss"] == f"{row['loss']:.2f}: content {row['content']:.2f}, style {row['style']:.2f}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 700


def test_every_picture_stands_on_a_page() -> None:
    shown = {((ROOT / page).parent / target).resolve() for page, target in links()}
    kept = {
        path for path in (ROOT / "docs" / "pictures").rglob("*") if path.suffix in (".jpg", ".png", ".svg", ".webp")
    }
    assert not kept - shown, f"no page shows {sorted(path.name for path in kept - shown)}"


@pytest.mark.parametrize("page", pages())
def test_no_page_has_a_conflict_of_a_merge(page: str) -> None:
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", (ROOT / page).read_text(), re.MULTILINE)
