"""The limits of a process."""

from __future__ import annotations

import pathlib

from support import Spec, python, write

LIMITED = """
import os, resource, sys
import tensorhold

folder, files, most_expected = sys.argv[1], 200, 32
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
before, most = len(os.listdir("/proc/self/fd")), 0

def look(progress=None):
    global most
    most = max(most, len(os.listdir("/proc/self/fd")) - before)

def check(number, tensor):
    assert tensor.tolist() == [number, 1, 2, 3], (number, tensor)
    look()

for backend in ("auto", "buffered"):
    tensors = tensorhold.load_file(folder, backend=backend, progress=look)
    assert len(tensors) == files
    for number in range(files):
        check(number, tensors[f"t{number}"])
names = []
for name, tensor in tensorhold.stream(folder):
    names.append(name)
    look()
assert len(names) == files
with tensorhold.safe_open(folder) as opened:
    look()
    for number in (*range(0, files, 3), *reversed(range(0, files, 7))):
        check(number, opened.get_tensor(f"t{number}"))
assert len(tensorhold.inspect(folder)[0]) == files
look()
assert most <= most_expected, most
"""


def test_two_hundred_files_load_where_64_may_be_open(tmp_path: pathlib.Path) -> None:
    for number in range(200):
        tensor = Spec("U8", (4,), bytes((number, 1, 2, 3)))
        write(tmp_path / f"model-{number + 1:05}-of-00200.safetensors", {f"t{number}": tensor})
    python(LIMITED, str(tmp_path))


EXHAUSTED = """
import errno, resource, sys
import tensorhold

assert len(tensorhold.load_file(sys.argv[1])) == 1
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
others = []
try:
    while True:
        others.append(open("/dev/null"))
except OSError:
    pass
try:
    tensorhold.load_file(sys.argv[1])
except tensorhold.FileError as error:
    message = str(error)
    assert error.errno == errno.EMFILE, error.errno
    assert "may open 64 files" in message and "RLIMIT_NOFILE" in message and "ulimit -n" in message, message
    assert "disk" not in message, message
else:
    raise AssertionError("it loaded")
others.clear()
assert len(tensorhold.load_file(sys.argv[1])) == 1
"""


def test_where_no_file_can_be_opened_the_error_names_the_limit_and_not_the_disk(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "model.safetensors", {"t": Spec("U8", (4,), b"0123")})
    python(EXHAUSTED, str(path))
