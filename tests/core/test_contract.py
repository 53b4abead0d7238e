"""The names of the contract; tests/docs/test_reference.py holds the pages against them."""

from nst_core import contract

TENSORS = {"IMAGE", "STYLE_WEIGHTS", "STATISTICS", "STYLIZED", "TEXTURE"}


def test_no_two_tensors_or_variables_have_one_name() -> None:
    assert len({getattr(contract, name) for name in TENSORS}) == len(TENSORS)
    assert all(variable.startswith("NST_") for variable in contract.Variable)
