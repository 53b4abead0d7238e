"""Files that appear whole or not at all, and the folders of a user who may have no home."""

import errno
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nst_core.errors import InputError, WriteError
from nst_core.files import STORAGE_FAULTS, atomic_write, cache_folder, state_folder


def write(path: Path, text: str, **options: object) -> None:
    with atomic_write(path, **options) as beside:  # type: ignore[arg-type]
        beside.write_text(text)


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_write(target) as beside:
        beside.write_text("whole")
        assert (beside.parent, beside.suffix) == (target.parent, ".txt")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), FileNotFoundError(errno.ENOENT, "another file", "x"), KeyboardInterrupt()]
)
def test_an_error_in_the_block_passes_and_leaves_the_older_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.txt"
    target.write_text("older")
    with pytest.raises(type(error)) as caught, atomic_write(target) as beside:
        beside.write_text("half")
        raise error
    assert caught.value is error
    assert target.read_text() == "older"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("fault", sorted(STORAGE_FAULTS))
def test_a_fault_of_the_disk_in_the_block_is_one_line(tmp_path: Path, fault: int) -> None:
    target = tmp_path / "a.txt"
    target.write_text("older")
    with pytest.raises(WriteError) as caught, atomic_write(target) as beside:
        raise OSError(fault, os.strerror(fault), str(beside))
    assert str(caught.value) == f"cannot write {target}: {os.strerror(fault)}"
    assert target.read_text() == "older"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_outgrows_its_limit(tmp_path: Path) -> None:
    """A real write that the system ends in the middle, as a full disk does."""
    target = tmp_path / "a.bin"
    target.write_text("older")
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from nst_core.errors import WriteError\n"
        "from nst_core.files import atomic_write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    with atomic_write(Path(sys.argv[1]), variable='NST_CACHE') as beside:\n"
        "        beside.write_bytes(bytes(100_000))\n"
        "except WriteError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True, timeout=60
    )
    advice = "set NST_CACHE to a writable folder"
    assert result.stdout == f"cannot write {target}: {os.strerror(errno.EFBIG)}; {advice}\n"
    assert target.read_text() == "older"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk(tmp_path: Path) -> None:
    """What is written to /dev/full fails as on a full disk."""
    target = tmp_path / "a.txt"
    with pytest.raises(WriteError) as caught, atomic_write(target) as beside:
        beside.unlink()
        beside.symlink_to("/dev/full")
        beside.write_text("text")
    assert str(caught.value) == f"cannot write {target}: {os.strerror(errno.ENOSPC)}"
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    real, link, chain = tmp_path / "deep" / "real.txt", tmp_path / "link.txt", tmp_path / "chain.txt"
    real.parent.mkdir()
    real.write_text("older")
    link.symlink_to("deep/real.txt")
    chain.symlink_to(link)
    write(chain, "newer")
    assert link.is_symlink()
    assert chain.is_symlink()
    assert real.read_text() == "newer"
    assert list(real.parent.iterdir()) == [real]


def test_a_link_to_nothing_makes_the_file_that_it_names(tmp_path: Path) -> None:
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "new" / "real.txt")
    write(link, "first")
    assert link.is_symlink()
    assert (tmp_path / "new" / "real.txt").read_text() == "first"


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o644)])
def test_a_private_file_is_its_owners_from_the_first_byte(tmp_path: Path, private: bool, mode: int) -> None:
    before = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "key", private=private) as beside:
            assert stat.S_IMODE(beside.stat().st_mode) == mode
            beside.write_text("secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == mode


def test_a_private_file_replaces_one_that_all_could_read(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("older")
    (tmp_path / "key").chmod(0o644)
    write(tmp_path / "key", "secret", private=True)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_folder_or_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("no folder")
    for target in (tmp_path / "folder", tmp_path / "file" / "a.txt"):
        with pytest.raises(WriteError, match=f"^cannot write {target}: "):
            write(target, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert list((tmp_path / "folder").iterdir()) == []


def test_the_file_and_its_name_are_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the content, then the rename, then the folder: a loss of power between them leaves one whole file."""
    happened: list[tuple[str, bool]] = []
    fsync = os.fsync
    target = tmp_path / "a.txt"

    def noted(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        happened.append((kind, target.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write(target, "text")
    assert happened == [("file", False), ("folder", True)]


def test_a_flush_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems tell only then that the disk is full."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="No space left on device"):
        write(tmp_path / "a.txt", "text")
    assert list(tmp_path.iterdir()) == []


# The user's folders

FOLDERS = [
    (cache_folder, "NST_CACHE", "XDG_CACHE_HOME", ".cache"),
    (state_folder, "NST_STATE", "XDG_STATE_HOME", ".local/state"),
]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing about the user's folders."""
    for name in ("NST_CACHE", "NST_STATE", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(("folder", "variable", "xdg", "below"), FOLDERS)
def test_where_the_users_folders_are(
    bare: pytest.MonkeyPatch, tmp_path: Path, folder: Callable[[], Path], variable: str, xdg: str, below: str
) -> None:
    bare.setenv("HOME", str(tmp_path))
    assert folder() == tmp_path / below / "nst"
    bare.setenv(xdg, str(tmp_path / "xdg"))
    assert folder() == tmp_path / "xdg" / "nst"
    bare.setenv(variable, str(tmp_path / "own"))
    assert folder() == tmp_path / "own"
    assert list(tmp_path.iterdir()) == [], "asking makes no folder"


@pytest.mark.parametrize(("folder", "variable", "xdg", "below"), FOLDERS)
def test_a_user_without_a_home_learns_what_to_set(
    bare: pytest.MonkeyPatch, tmp_path: Path, folder: Callable[[], Path], variable: str, xdg: str, below: str
) -> None:
    """OpenShift runs containers as a number that no passwd entry has."""

    def nobody(number: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    bare.setattr(pwd, "getpwuid", nobody)
    bare.delenv("HOME", raising=False)
    with pytest.raises(InputError) as caught:
        folder()
    assert str(caught.value) == (f"user id {os.getuid()} has no home folder; set {variable} to a writable folder")
    bare.setenv(xdg, str(tmp_path))
    assert folder() == tmp_path / "nst"
    bare.delenv(xdg)
    bare.setenv(variable, str(tmp_path / "own"))
    assert folder() == tmp_path / "own"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_real_user_id_without_an_entry(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from nst_core.errors import InputError\n"
        "from nst_core.files import cache_folder\n"
        "os.setuid(54_321)\n"
        "os.environ.pop('HOME', None)\n"
        "try: print(cache_folder())\n"
        "except InputError as error: print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NST_", "XDG_", "HOME"))}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert result.stdout.startswith("user id 54321 has no home folder; set NST_CACHE to a writable folder")


def test_who_may_read_a_file_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("old")
    (tmp_path / "secret").chmod(0o600)
    with atomic_write(tmp_path / "secret") as beside:
        beside.write_text("new")
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "secret").read_text() == "new"


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(WriteError, match="not a regular file"), atomic_write(tmp_path / name):
            pass
    assert (tmp_path / "pipe").is_fifo()
