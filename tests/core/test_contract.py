"""The names of the contract are in the docs, as they are spelled there."""

from pathlib import Path

import pytest

from nst_core import contract

DOCS = Path(__file__).parents[2] / "docs"
TENSORS = {"IMAGE", "STYLE_WEIGHTS", "STATISTICS", "STYLIZED", "TEXTURE"}
NAMES = {
    *(value for name, value in vars(contract).items() if name.isupper() and isinstance(value, str)),
    *contract.Purpose,
    *contract.Parameter,
    *contract.Variable,
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_is_documented(name: str) -> None:
    text = "".join((DOCS / page).read_text() for page in ("guides/serve.md", "guides/python-client.md"))
    assert f"`{name}`" in text


def test_the_documented_names_are_all() -> None:
    """The tables of the section name nothing that is not in the contract."""
    section = (DOCS / "guides" / "serve.md").read_text().partition("## The names\n")[2].partition("\n## ")[0]
    tables = [line for line in section.splitlines() if line.startswith("| `")]
    quoted = {part for line in tables for part in line.split("`")[1::2]}
    assert quoted == NAMES


def test_no_two_tensors_or_variables_have_one_name() -> None:
    assert len({getattr(contract, name) for name in TENSORS}) == len(TENSORS)
    assert all(variable.startswith("NST_") for variable in contract.Variable)
