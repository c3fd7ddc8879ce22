"""Arguments of the wrong kind are named, with what was got and what is expected."""

from __future__ import annotations

import pathlib
from typing import Any, Callable

import numpy as np
import pytest
from support import spec, write

import tensorhold
from tensorhold import Cut
from tensorhold.fastsafetensors import SafeTensorsFileLoader, fastsafe_open
from tensorhold.fastsafetensors.common import SafeTensorsMetadata
from tensorhold.fastsafetensors.frameworks import get_framework_op

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n"


@pytest.fixture
def model(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "m.safetensors"
    write(path, {"a": spec("F32", (2, 2))})
    return str(path)


# What callers that are not typed may pass.
NONE: Any = None
ONE: Any = 1
NUMBER: Any = 3


def message(call: Callable[[], Any], kind: type[BaseException] = tensorhold.OptionError) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


def test_a_variant_that_is_no_text_is_named(model: str) -> None:
    assert message(lambda: tensorhold.load(model, variant=ONE), TypeError).startswith("option variant: got 1 (int), expected a part of a file's name, a str")
    assert "option variant: got " in message(lambda: tensorhold.load(model, variant="\ud800"))
    assert "lone surrogate" in message(lambda: tensorhold.load(model, variant="\ud800"))


def test_ranges_of_numbers_are_the_real_ones(model: str) -> None:
    for threads in (-1, 0, 1025, 2**70):
        assert "expected 1 to 1024" in message(lambda: tensorhold.load(model, threads=threads)), threads
    assert "expected 131072 to 2^64 - 1" in message(lambda: tensorhold.load(model, staging_bytes=-1))
    narrow = message(lambda: Cut.narrow(-1, 0, 1))
    assert narrow == "argument dim of Cut.narrow: got -1, expected 0 to 2^64 - 1; correct it"


def test_a_dtype_that_is_none_is_answered_with_those_that_a_load_converts_to(model: str) -> None:
    for dtype in ("x", "I33", lambda info: "x"):
        said = message(lambda: tensorhold.load(model, dtype=dtype))
        assert "expected one of F32, F16, BF16, F8_E4M3, F8_E5M2; name one of these" in said


def test_a_chunk_is_called_so_and_a_world_of_none_is_blamed_for_itself(model: str) -> None:
    said = message(lambda: tensorhold.load(model, cuts={"a": Cut.chunk(0, 0, 0)}), tensorhold.TensorError)
    assert "chunk of tensor" in said and "a world of 0" in said


def test_the_file_of_load_file_is_named_by_its_argument() -> None:
    for call in (lambda: tensorhold.load_file(NUMBER), lambda: tensorhold.safe_open(NUMBER), lambda: tensorhold.load_file([NUMBER])):
        assert message(call).startswith("argument filename: got 3 (int), expected a path or several")
    assert message(lambda: tensorhold.load(NUMBER)).startswith("option paths: got 3 (int)")


def test_the_number_of_a_device_may_be_one_of_numpy() -> None:
    assert tensorhold._core.device_name(np.int64(1)) == "cuda:1"
    wrong: Any
    for wrong in (True, -1, np.int64(-1), 1.0):
        assert "option device" in message(lambda: tensorhold._core.device_name(wrong))


def test_arguments_of_dlpack_are_named(model: str) -> None:
    tensor = tensorhold.load(model)["a"]
    options: Any
    for options, words in [
        ({"max_version": 3}, "argument max_version of __dlpack__: got 3 (int), expected a major and a minor version"),
        ({"max_version": ("1", 0)}, "argument max_version of __dlpack__"),
        ({"dl_device": "cpu"}, 'argument dl_device of __dlpack__: got "cpu" (str)'),
        ({"copy": "no"}, 'argument copy of __dlpack__: got "no" (str), expected True or False'),
    ]:
        assert words in message(lambda: tensor.__dlpack__(**options), TypeError)


def test_a_budget_that_one_byte_is_missing_to_is_shown_exactly(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "big.safetensors"
    write(path, {"a": spec("U8", (1 << 20,))})
    said = message(lambda: tensorhold.load(path, memory_budget=(1 << 20) - 1), tensorhold.OutOfMemoryError)
    assert "1 tensor needs 1048576 B of device memory, expected at most 1048575 B" in said


def test_files_by_rank_are_a_dict_of_lists(model: str) -> None:
    loader = SafeTensorsFileLoader(None, "cpu")
    found: Any
    for found, words in [
        ({0: model}, "expected a list of paths; put the path in a list"),
        ([model], "got list, expected a dict from ranks to lists of paths; name the rank, as in {0: [path]}"),
        (model, "got str, expected a dict from ranks"),
        ({0: [3]}, "files of rank 0: got int, expected a path"),
        ({0: None}, "files of rank 0: got None, expected a list of paths"),
        ({"a": [model]}, 'got the key "a" of type str, expected a rank, an int'),
    ]:
        said = message(lambda: loader.add_filenames(found), TypeError)
        assert said.startswith("argument filenames") and words in said
    assert message(lambda: fastsafe_open(NUMBER), TypeError).startswith("argument filenames: got int")
    of_numpy: Any = {np.int64(0): [model]}
    loader.add_filenames(of_numpy)
    assert loader.get_keys() == ["a"]


def test_a_header_of_the_drop_in_names_foreign_files(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    framework = get_framework_op("pytorch")
    for data, words in [(LFS, "HeaderTooLarge: it is a Git LFS pointer"), (b"404\n", "HeaderTooSmall: it is a text file"), (b"\xff" * 9, "HeaderTooLarge: got")]:
        path.write_bytes(data)
        assert words in message(lambda: SafeTensorsMetadata.from_file(str(path), framework), tensorhold.FormatError)


def test_names_of_tensors_are_in_double_quotes_wherever_a_message_is_from(model: str) -> None:
    loader = SafeTensorsFileLoader(None, "cpu")
    loader.add_filenames({0: [model]})
    loaded = loader.copy_files_to_device()
    assert 'find tensor "b\\"\\n"' in message(lambda: loaded.get_tensor('b"\n'), ValueError)


def test_numbers_of_dimensions_and_ranks_are_named_in_the_drop_in(model: str) -> None:
    loader = SafeTensorsFileLoader(None, "cpu")
    loader.add_filenames({0: [model]})
    loaded = loader.copy_files_to_device()
    text: Any = "x"
    assert message(lambda: loaded.get_sharded("a", text), TypeError).startswith('argument dim: got "x" of type str, expected an int')
    assert message(lambda: loaded.push_tensor("a", text), TypeError).startswith('argument dst_rank: got "x" of type str')


def test_none_is_called_none(tmp_path: pathlib.Path) -> None:
    assert message(lambda: tensorhold.save_file({}, NONE), TypeError).startswith("argument filename: got None")
