"""The same calls of fastsafetensors 0.5.0 and of the drop-in return the same, or raise errors that the same `except` catches; but for those listed here."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from drop_in import all_goes_back  # noqa: F401
from parity import compared, is_same, run
from support import spec, write

WANTED = {
    "an argument of a wrong type is an error that names it, and the type that is expected": [
        "configuration file with '[]'",
        "configuration file with '3'",
        "add ['ONE']",
        "add {0: 'ONE'}",
        "add {'a': ['ONE']}",
        "add None",
        "a loader with {'max_threads': -1}",
        "fastsafe_open of None",
        "save a list",
        "save a complex tensor",
        "a type that it has not",
        "a complex tensor, wrapped",
    ],
    "paths may be a tuple, or one path, where a list is expected: fastsafetensors loads nothing, or takes each letter for a path": [
        "fastsafe_open of ('1.safetensors',)",
        "fastsafe_open of PosixPath('1.safetensors')",
        "weights of '1.safetensors'",
        "parts of '1.safetensors'",
    ],
    "a device may be named where fastsafetensors wants an object": ["get_tensor on a device by name of a buffer that is open"],
    "groups of one's own are taken, and a group of the framework layer is itself": ["a group of Of", "a group of the framework layer"],
    "tensors of a load are converted to larger types, too": [
        "load 1 files as F16",
        "load 1 files as BF16",
        "load 1 files as F32",
        "load 1 files as I32",
        "load 1 files as F64",
        "load 2 files as F64",
    ],
    "a tensor that is longer than a batch is a batch of its own": ["weights with parts that are too short", "a pipeline with parts that are too short"],
    "tensors that do not join are found before they are exchanged": ["get_multi_cols of others of a buffer that is open"],
    "a loader may be used again after close()": ["a load of a closed loader that files are added to"],
    "a pipeline that has been closed says so": ["weights of a closed pipeline"],
    "iterating again begins again: fastsafetensors waits forever": ["weights, iterated twice"],
    "memory stays valid as long as it can be read: a view keeps that of a borrowed tensor, which is itself empty after its buffer": [
        "what a view of a borrowed tensor keeps",
        "the elements of a borrowed tensor after its buffer",
    ],
    "a tensor that an iteration yields is not copied: it is counted while it lives": ["what yielded tensors keep"],
    "a damaged or ambiguous file is refused by one class of errors": [
        "load {0: ['padded.safetensors']}",
        "header []",
        'header {"t": {"dtype": "F32", "shape": [1]}}',
        'header {"t": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "t": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}',
    ],
    "keys that mark the files of a set are not overwritten in silence": ["save with {'metadata': {'fst.shard.index': '9'}}"],
    "in a file, the types of large elements are first, so that all elements are aligned": ["plan types"],
    "plans are written that plan_shards() has checked": ["write a plan that is not made here"],
    "3FS is not read, whatever is installed": ["ThreeFSLoader", "ParallelThreeFSLoader"],
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each call gave: of fastsafetensors, and of the drop-in."""
    folder = tmp_path_factory.mktemp("parity")
    files = [
        write(folder / "1.safetensors", {"a": spec("F32", (3, 4)), "i": spec("I64", (5,)), "s": spec("F32", ())}),
        write(folder / "2.safetensors", {"b": spec("F32", (2, 3)), "c": spec("F32", (1, 3))}, {"k": "v"}),
        write(folder / "again.safetensors", {"a": spec("F32", (2,), 1)}),
        write(
            folder / "mixed.safetensors",
            {
                "a": spec("F16", (6,)), "u": spec("U8", (5,)), "q": spec("F8_E4M3", (8,)), "m": spec("BOOL", (3,)), "e": spec("F32", (0, 2)),
                "b": spec("BF16", (24,)),
            },
        ),
        write(folder / "padded.safetensors", {"p": spec("F32", (2,))}),
    ]  # fmt: skip
    with open(files[-1], "ab") as file:
        file.write(bytes(8))
    found = []
    for package in ("real", "drop-in"):
        place: pathlib.Path = folder / package
        place.mkdir()
        found.append(run(package, "parity_cases.py", str(place), *map(str, files))[0])
    return found


@compared
def test_the_same_calls_have_the_same_outcomes_but_for_those_that_are_wanted(outcomes: list[dict[str, Any]]) -> None:
    real, found = outcomes
    assert list(real) == list(found)
    assert not [name for of in outcomes for name, outcome in of.items() if "NameError" in outcome.get("raised", ())]
    wanted = [name for names in WANTED.values() for name in names]
    assert len(wanted) == len(set(wanted))
    differ = [name for name in real if not is_same(real[name], found[name])]
    unexpected = {name: (real[name], found[name]) for name in differ if name not in wanted}
    assert not unexpected, "\n".join(f"{name}: {of[0]} but {of[1]}" for name, of in unexpected.items())
    # Each difference is there.
    assert sorted(differ) == sorted(wanted)


@compared
def test_errors_have_the_words_that_callers_look_for(outcomes: list[dict[str, Any]]) -> None:
    words = {
        "Device.from_str('xpu:0')": "Unknown device type: xpu",
        "Device.from_str('cpu:x')": "Invalid index: x",
        "weights with two producers": "max_concurrent_producers must be 1",
        "configuration of two producers in a group": "max_concurrent_producers must be 1",
        "tensor_filter with two ranks": "single-process",
        "borrowed_tensors with two ranks": "single-process loader group",
        "weights with one size without parts": "requires max_batch_bytes",
        "weights with a rule that counts nothing": "resident_tensor requires",
        "weights with borrowed tensors that are kept": "accumulate_resident=False",
        "weights with negative bytes for broadcasts": "non-negative",
        "a queue of 3 for a budget of 1 that keeps all": "already fully serial",
        "plan AUTO": "AUTO",
        "plan a negative shape": "nonnegative",
        "plan an odd F4": "even",
        "plan a wrong size": "bytes",
        "plan a reserved name": "reserved",
        "plan for []": "paths",
        "save with {'shards': 0}": "num_shards",
        "save with {'header_align': 7}": "header_align",
        "save with {'metadata': {'a': 1}}": "strings",
        "save with {'min_free_bytes': 4611686018427387904}": "not enough space",
        "save with strings of a shard {'fst.shard.index': '9'}": "reserved",
        "validate (0, 3)": "separately",
        "validate (1, 0)": "expected 0",
        "validate (0,)": "expected",
        "a file that is short": "HeaderTooSmall",
        "the framework x": "Unknown framework name",
        "AutoLoader of {\"loader\": \"other\"}": "Unknown loader type",
    }
    for found in outcomes:
        for name, word in words.items():
            assert word in found[name].get("text", ""), (name, found[name])
