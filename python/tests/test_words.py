"""What messages say: the argument, what was got and what is expected, in Python's words."""

import functools
import io
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import tensorhold
from support import spec, write, write_raw
from tensorhold import _core

# Calls with wrong arguments are what is tested: no type checker looks at them.
th: Any = tensorhold
core: Any = _core
Cut: Any = tensorhold.Cut


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return write(tmp_path / "model.safetensors", {"a": spec("F32", (4, 6)), "b": spec("U8", (3,))})


# Arguments that cannot be converted: a call, the exception, and what its message says.
ARGUMENTS: list[tuple[Callable[[Any], object], type[Exception], list[str]]] = [
    (lambda f: th.load(open(f, "rb")), ValueError, ["option paths", "an open file (BufferedReader)", "pass the file's name"]),
    (lambda f: th.load(io.BytesIO()), ValueError, ["option paths", "an open file (BytesIO)"]),
    (lambda f: th.load([io.StringIO()]), ValueError, ["option paths", "an open file (StringIO)"]),
    (lambda f: th.load([("a", f)]), ValueError, ["option paths", "an object of type tuple"]),
    (lambda f: th.load("a\udc80\ud800"), ValueError, ["option paths", "(str)", "os.PathLike"]),
    (lambda f: th.inspect(3), ValueError, ["option paths", "3 (int)"]),
    (lambda f: th.load([]), ValueError, ["no files were given", "list of paths"]),
    (lambda f: th.load(f, 3.5), ValueError, ["option device", "3.5", "cuda:N"]),
    (lambda f: th.load(f, threads="4"), TypeError, ["option threads", '"4" (str)', "a whole number, an int"]),
    (lambda f: th.load(f, threads=4.0), TypeError, ["option threads", "4.0 (float)"]),
    (lambda f: th.load(f, threads=True), TypeError, ["option threads", "True (bool)"]),
    (lambda f: th.load(f, threads=-1), ValueError, ["option threads: got -1"]),
    (lambda f: th.load(f, threads=10**5000), ValueError, ["option threads"]),
    (lambda f: th.load(f, staging_bytes="64MiB"), TypeError, ["option staging_bytes", '"64MiB" (str)']),
    (lambda f: th.load(f, staging_bytes=131071), ValueError, ["got 131071 B, expected at least 131072 B"]),
    (lambda f: th.load(f, memory_budget=1e9), TypeError, ["option memory_budget", "1000000000.0 (float)"]),
    (lambda f: th.load(f, memory_budget=[1]), TypeError, ["option memory_budget", "an object of type list"]),
    (lambda f: th.load(f, dtype="float31"), ValueError, ["option dtype", '"float31"', "BF16"]),
    (lambda f: th.load(f, dtype=lambda info: "float31"), ValueError, ["option dtype, the rule's answer for tensor \"a\""]),
    (lambda f: th.load(f, cuts=[("a", 1)]), ValueError, ["option cuts", "an object of type list", "a dict from names"]),
    (lambda f: th.load(f, cuts={"a": 3}), TypeError, ['option cuts of tensor "a"', "3 (int)", "tensorhold.Cut"]),
    (lambda f: th.load(f, cuts={"a": (0, 1, 2)}), TypeError, ['option cuts of tensor "a"', "0 (int)"]),
    (lambda f: th.load(f, cuts={3: Cut.narrow(0, 0, 1)}), TypeError, ["option cuts, a key in it", "3 (int)"]),
    (lambda f: th.load(f, cuts=lambda info: 3), TypeError, ["option cuts, the rule's answer for tensor \"a\"", "3 (int)"]),
    (lambda f: th.load(f, select=[("a", 1)]), TypeError, ["option select, a name in it", "an object of type tuple"]),
    (lambda f: th.load(f, select=b"a"), TypeError, ["option select", "bytes"]),
    (lambda f: th.load(f, backend=3), TypeError, ["option backend", "3 (int)"]),
    (lambda f: th.load(f, pool=3), TypeError, ["option pool", "3 (int)", "tensorhold.Pool"]),
    (lambda f: th.load(f, parts="yes"), TypeError, ["option parts", '"yes" (str)', "True or False"]),
    (lambda f: th.load(f, count_conversions="no"), TypeError, ["option count_conversions", '"no" (str)']),
    (lambda f: th.load(f, progress=3), TypeError, ["option progress", "3 (int)", "a function"]),
    (lambda f: th.stream(f, in_file_order="x"), TypeError, ["option in_file_order", '"x" (str)']),
    (lambda f: th.load_file(f, framework=["np"]), ValueError, ["option framework", "['np']"]),
    (lambda f: th.Pool(limit_bytes="1GB"), TypeError, ["argument limit_bytes of Pool", '"1GB" (str)']),
    (lambda f: th.Pool(retain_bytes=-1), ValueError, ["argument retain_bytes of Pool", "-1"]),
    (lambda f: th.Pool(parts="x"), TypeError, ["argument parts of Pool", '"x" (str)']),
    (lambda f: th.Pool(name=3), TypeError, ["argument name of Pool", "3 (int)"]),
    (lambda f: Cut.narrow(-1, 0, 1), ValueError, ["argument dim of Cut.narrow", "-1"]),
    (lambda f: Cut.narrow(0, "0", 1), TypeError, ["argument start of Cut.narrow", '"0" (str)']),
    (lambda f: Cut.shard(0, 0.5, 1), TypeError, ["argument rank of Cut.shard", "0.5 (float)"]),
    (lambda f: Cut.chunk(0, 0, None), TypeError, ["argument world of Cut.chunk", "None"]),
    (lambda f: th.load(f)[3], TypeError, ["argument name", "3 (int)", "the name of a tensor"]),
    (lambda f: th.load(f).info(None), TypeError, ["argument name", "None"]),
    (lambda f: th.load(f).metadata(3), TypeError, ["argument file of metadata", "3 (int)", "os.PathLike"]),
    (lambda f: th.load(f)["a"].narrow(0, "0", 1), TypeError, ["argument start of narrow", '"0" (str)']),
    (lambda f: th.load(f)["a"].view(3), ValueError, ["argument dtype of view", '"3"']),
    (lambda f: core.open(f).info(3), TypeError, ["argument name", "3 (int)"]),
    (lambda f: core.open(f).load("a"), TypeError, ["argument names of load", '"a" (str)']),
    (lambda f: core.open(f).load([3]), TypeError, ["argument names of load, a name in it", "3 (int)"]),
    (lambda f: core.open(f).metadata(3), TypeError, ["argument file of metadata", "3 (int)"]),
    (lambda f: core.check_group(3), TypeError, ["argument group", "3 (int)", "TorchGroup"]),
]


@pytest.mark.parametrize("case", range(len(ARGUMENTS)))
def test_an_argument_that_cannot_be_converted_is_named_with_what_it_is(file: pathlib.Path, case: int) -> None:
    call, kind, words = ARGUMENTS[case]
    with pytest.raises(kind) as caught:
        call(file)
    message = str(caught.value)
    assert all(word in message for word in words) and ("expected" in message or "no files" in message), message
    assert len(message) < 700, message


def test_numbers_of_numpy_and_paths_of_pathlib_are_taken(file: pathlib.Path) -> None:
    numpy = pytest.importorskip("numpy")
    cut = {"a": Cut.narrow(numpy.int64(0), numpy.uint8(1), numpy.int32(2))}
    weights = th.load(file, threads=numpy.int64(2), cuts=cut, parts=numpy.bool_(False), pool=None, dtype=None)
    assert weights["a"].shape == (2, 6) and weights.report().threads >= 1
    assert th.load([file]).metadata(file) == {}


# Files that are no safetensors files, and words of what is said of them.
FOREIGN: list[tuple[bytes, list[str]]] = [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", ["git lfs pointer", "git lfs pull"]),
    (b"<!DOCTYPE html><html><title>Sign in</title></html>", ["html page", "sign in"]),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", ["xml", "accessdenied"]),
    (b'{"error": "Repository not found"}', ["json", "repository not found"]),
    (b"PK\x03\x04" + bytes(60), ["zip", "torch"]),
    (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", ["torch"]),
    (b"GGUF\x03\0\0\0\0\0\0\0", ["gguf"]),
    (b"\x93NUMPY\x01\0v\0{", ["numpy"]),
    (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", ["gzip"]),
    (bytes(4096), ["zeros"]),
    (b"Entry not found", ["entry not found"]),
]


@pytest.mark.parametrize("content,words", FOREIGN)
def test_a_file_of_another_format_is_named_for_what_it_is(tmp_path: pathlib.Path, content: bytes, words: list[str]) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(content)
    for call in (th.load, th.inspect, core.open, lambda path: th.stream(path).finish()):
        with pytest.raises(tensorhold.FormatError) as caught:
            call(file)
        message = str(caught.value).lower().replace(str(file).lower(), "")
        assert all(word in message for word in words), message


def test_archives_of_torch_and_numpy_are_told_apart(tmp_path: pathlib.Path) -> None:
    for entry, word in (("archive/data.pkl", "torch.save"), ("weight.npy", ".npz")):
        file = tmp_path / "m.safetensors"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(entry, bytes(100))
        with pytest.raises(tensorhold.FormatError, match=word):
            th.load(file)


def test_an_index_that_is_a_pointer_is_named_for_what_it_is(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(tensorhold.FormatError, match="Git LFS pointer.*git lfs pull"):
        th.load(tmp_path)


def test_an_unknown_dtype_is_an_error_that_lists_the_known_ones(tmp_path: pathlib.Path) -> None:
    file = write_raw(tmp_path / "m.safetensors", '{"a":{"dtype":"F5_X","shape":[2],"data_offsets":[0,2]}}', bytes(2))
    with pytest.raises(tensorhold.FormatError, match='unknown dtype "F5_X", expected one of BOOL, .*BF16.* newer') as caught:
        th.load(file)
    assert "write the file again" not in str(caught.value)


def test_a_number_from_the_environment_names_the_variable(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (("TENSORHOLD_THREADS", "100000"), ("TENSORHOLD_STAGING_BYTES", "131071"), ("TENSORHOLD_BACKEND", "gds")):
        with monkeypatch.context() as setting:
            setting.setenv(variable, value)
            with pytest.raises(tensorhold.OptionError, match=f"setting {variable}: got"):
                th.load(file)


def test_no_message_has_names_of_the_library_in_rust(file: pathlib.Path) -> None:
    def failures() -> list[Callable[[], object]]:
        weights, opened = th.load(file), th.safe_open(file, "np")
        a = weights["a"]
        return [
            lambda: weights["zz"],
            lambda: opened.get_tensor("zz"),
            lambda: a.narrow(3, 0, 1),
            lambda: a.narrow(0, 3, 9),
            lambda: a.narrow(1, 1, 2),
            lambda: weights["b"].view("F32"),
            lambda: a.to("nothing"),
            lambda: weights.metadata("none"),
            lambda: th.load([]),
            lambda: th.load(file, backend="gds"),
            lambda: th.load(file, memory_budget=10),
            lambda: th.load(file, dtype="I64"),
            lambda: th.load(file, dtype=lambda info: "I64"),
            lambda: th.load(file, staging_bytes=1),
            lambda: th.load(file, threads=5000),
            lambda: th.load(file, select=["zz"]),
            lambda: th.load(file, cuts={"a": Cut.shard(0, 0, 3)}),
            lambda: th.load(file, cuts={"a": Cut.narrow(9, 0, 3)}),
            lambda: th.load(file, cuts={"zz": Cut.narrow(0, 0, 3)}),
            lambda: th.load(file, "cuda:250"),
            lambda: th.load(file, "pinned", backend="gds"),
            lambda: th.load(file, pool=th.Pool(limit_bytes=10)),
            lambda: th.load(file.parent / "missing"),
            lambda: th.load("/dev/null"),
            lambda: th.load(file / "below"),
            lambda: th.load(file.parent / ("n" * 300)),
            lambda: th.Pool("cuda:250", parts=True),
            *[functools.partial(call, file) for call, _, _ in ARGUMENTS],
        ]

    messages = []
    for call in failures():
        with pytest.raises(Exception) as caught:
            call()
        messages.append(str(caught.value))
    for message in messages:
        for name in ("::", "Device.host", "Backend", "Loader", "names()", "checkpoint()", "shape()", "--", "RegionParts", "device.memory"):
            assert name not in message, message


def test_errors_of_the_system_say_their_own_cause(file: pathlib.Path) -> None:
    for path, words in (
        (file / "below", "is a file, not a directory"),
        (file.parent / ("n" * 300), "is too long"),
        (file.parent / "missing", "no such file"),
    ):
        with pytest.raises(tensorhold.FileError, match=words) as caught:
            th.load(path)
        assert "disk" not in str(caught.value) and caught.value.errno


def test_a_device_that_a_framework_does_not_find_is_an_error_of_devices(file: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    kind: type[Exception]
    if torch.cuda.is_available():
        device, kind = f"cuda:{torch.cuda.device_count()}", tensorhold.DeviceError
    else:
        device, kind = "cuda:0", tensorhold.DeviceError if torch.version.cuda else tensorhold.FrameworkError
    with pytest.raises(kind) as caught:
        th.load_file(file, device)
    assert device in str(caught.value)


def test_a_header_of_another_length_is_told_exactly(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", 1) + bytes(100))
    with pytest.raises(tensorhold.FormatError, match="1 bytes long, expected at least 2"):
        th.load(file)
