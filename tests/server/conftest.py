from pathlib import Path

import pytest

from nst_server import triton

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def installation() -> triton.Installation:
    return triton.find(ROOT / ".triton", print)
