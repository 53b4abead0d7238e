from pathlib import Path

import pytest

from nst_server.installation.triton import Installation, find_triton

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def installation() -> Installation:
    return find_triton(ROOT / ".triton", print)
