"""A save replaces regular files and makes new ones. Whatever else its path leads to stays as it is."""

from __future__ import annotations

import os
import pathlib
import re
import socket
import stat
import subprocess
import sys

import pytest

import tensorhold

numpy = pytest.importorskip("numpy")


def save(path: str | os.PathLike[str]) -> None:
    tensorhold.save_file({"a": numpy.ones(3, "f4")}, path)


def look(folder: pathlib.Path) -> dict[str, tuple[int, int, int]]:
    """What is in a folder: kind and mode, identity, and device number."""
    found = {path.name: path.lstat() for path in folder.iterdir()}
    return {name: (about.st_mode, about.st_ino, about.st_rdev) for name, about in found.items()}


def refuses(path: str | os.PathLike[str], words: str) -> None:
    with pytest.raises(tensorhold.FileError, match=words) as refused:
        save(path)
    assert refused.value.operation == "save" and os.fspath(path) == refused.value.path


def test_what_is_not_a_regular_file_stays_as_it_is(tmp_path: pathlib.Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    kinds = {"directory": "a directory", "fifo": "a FIFO", "socket": "a socket"}
    for name in kinds:
        (tmp_path / f"{name}-link").symlink_to(name)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("no/such")
    before = look(tmp_path)
    for name, what in kinds.items():
        refuses(tmp_path / name, what)
        refuses(tmp_path / f"{name}-link", f"a link to .*{what}")
    refuses(tmp_path / "loop", "loop")
    refuses(tmp_path / "gone", "does not exist")
    assert look(tmp_path) == before
    reader, writer = os.pipe()
    refuses(f"/proc/self/fd/{writer}", "a FIFO")
    os.close(reader)
    os.close(writer)


def test_the_null_device_stays_as_it_is(tmp_path: pathlib.Path) -> None:
    if os.geteuid() == 0:
        # The test of another user saves there, too.
        pytest.skip("a save that failed this test as root would replace the device")
    (tmp_path / "null").symlink_to("/dev/null")
    refuses(tmp_path / "null", "a link to \"/dev/null\", not a regular file but a character device")
    refuses("/dev/null", "a character device")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_device_nodes_stay_as_they_are(tmp_path: pathlib.Path) -> None:
    try:
        os.mknod(tmp_path / "char", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(tmp_path / "block", stat.S_IFBLK | 0o666, os.makedev(7, 200))
    except PermissionError:
        pytest.skip("this user may not make device nodes")
    (tmp_path / "link").symlink_to("char")
    before = look(tmp_path)
    refuses(tmp_path / "char", "a character device")
    refuses(tmp_path / "block", "a block device")
    refuses(tmp_path / "link", "a link to \"char\", not a regular file but a character device")
    assert look(tmp_path) == before


def test_links_are_followed_and_other_names_keep_the_old_content(tmp_path: pathlib.Path) -> None:
    file, soft, hard, fresh = (tmp_path / name for name in ("file", "soft", "hard", "fresh"))
    file.write_text("before")
    os.link(file, hard)
    soft.symlink_to("file")
    fresh.symlink_to("new")
    save(soft)
    save(fresh)
    assert os.readlink(soft) == "file" and os.readlink(fresh) == "new"
    assert hard.read_text() == "before"
    assert all(len(tensorhold.load(path)) == 1 for path in (file, soft, tmp_path / "new"))
    assert len(look(tmp_path)) == 5


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o666, 0o444])
def test_a_replaced_file_keeps_its_mode(mode: int, tmp_path: pathlib.Path) -> None:
    save(tmp_path / "file")
    (tmp_path / "file").chmod(mode)
    if os.access(tmp_path / "file", os.W_OK):
        save(tmp_path / "file")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    else:
        with pytest.raises(PermissionError, match="may not write to the file"):
            save(tmp_path / "file")


def test_paths_that_name_no_file_are_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("before")
    for path, words in [("", "path is empty"), (f"{tmp_path}/new/", "ends in a directory"), (f"{tmp_path}/..", "ends in a directory")]:
        refuses(path, words)
    refuses(tmp_path / "file" / "new", "is a file, expected directories")
    with pytest.raises(FileNotFoundError, match="no\" does not exist; create it"):
        save(tmp_path / "no" / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


AS_NOBODY = """
import os, sys, numpy, tensorhold
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
for path in sys.argv[1:]:
    try:
        tensorhold.save_file({"a": numpy.ones(3)}, path)
        print("saved")
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_another_user_replaces_only_what_that_user_may_write_to(tmp_path: pathlib.Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for parent in [tmp_path, *tmp_path.parents][:3]:
        parent.chmod(0o777)
    closed = tmp_path / "closed"
    closed.mkdir(0o755)
    for name in ("mine", "read-only", "theirs", "fifo"):
        os.mkfifo(tmp_path / name, 0o666) if name == "fifo" else (tmp_path / name).write_text("before")
    (tmp_path / "theirs").chmod(0o644)
    for name, mode in (("mine", 0o600), ("read-only", 0o444)):
        os.chown(tmp_path / name, 65534, 65534)
        (tmp_path / name).chmod(mode)
    paths = [tmp_path / "mine", tmp_path / "read-only", tmp_path / "theirs", tmp_path / "fifo", closed / "new", pathlib.Path("/dev/null")]
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, *paths], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    words = ["saved", "AccessError .*may not write to the file", "AccessError .*may not write to the file", "FileError .*a FIFO"]
    words += ["AccessError .*may not create files in its folder", "FileError .*a character device"]
    assert len(lines) == len(words) and all(re.match(word, line) for word, line in zip(words, lines)), lines
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600
