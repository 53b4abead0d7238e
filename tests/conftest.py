import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nst_core.images import sample_photographs
from nst_trainer.checkpoint import Checkpoint, frozen
from nst_trainer.networks import Johnson
from nst_trainer.vgg import Vgg16
from nst_trainer.weights import vgg16_weights


def pytest_configure() -> None:
    """Commands that the tests start hear Ctrl-C, also where a shell started the tests in the background, without it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files, those with real servers and trainings, come first, so that no worker is left alone with a long file.

    GPU tests are skipped, with the reason, where there is no GPU; the summary lists them.
    """
    folders = ("end_to_end", "trainer")
    items.sort(key=lambda item: folders.index(item.path.parent.name) if item.path.parent.name in folders else 2)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine"))


@pytest.fixture(scope="session", autouse=True)
def state_of_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers of the tests leave their state here and not with the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NST_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def vgg() -> Vgg16:
    """The real loss network; its weights are fetched once and cached for the user."""
    return Vgg16(vgg16_weights())


@pytest.fixture(scope="session")
def photographs() -> dict[str, Path]:
    return {path.stem: path for path in sample_photographs()}


@pytest.fixture
def small_checkpoint() -> Checkpoint:
    """A network of an eighth of the paper's width with random weights."""
    torch.manual_seed(7)
    return Checkpoint(frozen(Johnson(width=0.125)), ("seven",), {"style_weight": 2.5}, {"style": 1.0})
