"""Calls that read parts of tensors."""

from __future__ import annotations

from typing import Any

import numpy
import torch

from side_by_side import Call

INDEXES: dict[str, Any] = {
    ":": slice(None),
    "()": (),
    "...": ...,
    "0": 0,
    "9": 9,
    "-1": -1,
    "-10": -10,
    "10": 10,
    "-11": -11,
    "2 to the 40": 1 << 40,
    "2 to the 70": 1 << 70,
    "2:4": slice(2, 4),
    ":4": slice(None, 4),
    "4:": slice(4, None),
    "4:4": slice(4, 4),
    "5:2": slice(5, 2),
    "10:": slice(10, None),
    "10:10": slice(10, 10),
    ":20": slice(None, 20),
    "20:30": slice(20, 30),
    "-2:": slice(-2, None),
    ":-2": slice(None, -2),
    "-20:": slice(-20, None),
    "::2": slice(None, None, 2),
    "1:8:3": slice(1, 8, 3),
    "::20": slice(None, None, 20),
    "::0": slice(None, None, 0),
    "::-1": slice(None, None, -1),
    "'a':": slice("a", None),
    "1.5:": slice(1.5, None),
    "::1.5": slice(None, None, 1.5),
    "True:": slice(True, None),
    ":, 1": (slice(None), 1),
    "1, :": (1, slice(None)),
    "1, 2": (1, 2),
    "-1, -1": (-1, -1),
    "1, 5": (1, 5),
    "1, -6": (1, -6),
    "2:, 20": (slice(2, None), 20),
    ":, :20": (slice(None), slice(None, 20)),
    ":, 5:": (slice(None), slice(5, None)),
    ":, ::2": (slice(None), slice(None, None, 2)),
    "::3, 1::2": (slice(None, None, 3), slice(1, None, 2)),
    "::3, 2": (slice(None, None, 3), 2),
    "2:5, 1:2": (slice(2, 5), slice(1, 2)),
    "..., 1": (..., 1),
    "1, ...": (1, ...),
    "1, 2, ...": (1, 2, ...),
    "1, ..., 2": (1, ..., 2),
    "..., ...": (..., ...),
    "..., 1, 2, 3": (..., 1, 2, 3),
    "1, 2, 3": (1, 2, 3),
    ":, :, :": (slice(None),) * 3,
    "None": None,
    "None, 1": (None, 1),
    "1, None": (1, None),
    ":, None": (slice(None), None),
    "..., None": (..., None),
    "True": True,
    "False": False,
    "True, 1": (True, 1),
    "[]": [],
    "[0]": [0],
    "[0, 2, 2]": [0, 2, 2],
    "[-1, 1]": [-1, 1],
    "[10]": [10],
    "[[0, 1], [2, 3]]": [[0, 1], [2, 3]],
    "[True] * 10": [True] * 10,
    "[True] * 3": [True] * 3,
    "[None]": [None],
    "['a']": ["a"],
    "[1.5]": [1.5],
    ":, [1, 3]": (slice(None), [1, 3]),
    "[0, 1], [2, 3]": ([0, 1], [2, 3]),
    "2:5, [0, 1]": (slice(2, 5), [0, 1]),
    "1, [0, 1]": (1, [0, 1]),
    "([0, 1],)": ([0, 1],),
    "(0, 1),": ((0, 1),),
    "a tensor of integers": torch.tensor([0, 2]),
    "a tensor of one integer": torch.tensor(2),
    "a tensor of booleans": torch.arange(10) % 3 == 0,
    "a mask of all": torch.arange(50).reshape(10, 5) % 7 == 0,
    "a mask that is too short": torch.tensor([True, False]),
    "a tensor of floats": torch.tensor([0.5]),
    "an array of integers": numpy.array([0, 2]),
    "an array of one integer": numpy.array(2),
    "an integer of NumPy": numpy.int64(2),
    "an array of booleans": numpy.arange(10) % 3 == 0,
    "an array, 1": (numpy.array([0, 2]), 1),
    "an array of floats": numpy.array([1.5]),
    "an array of one float": numpy.array(1.5),
    "an array of no floats": numpy.array([]),
    "0, an array of floats": (0, numpy.array([1.5])),
    "an array of text": numpy.array(["a"]),
    "a float of NumPy": numpy.float64(1.5),
    "a tensor of True, 0:2": (torch.tensor(True), slice(0, 2)),
    "an array of True, 0:2": (numpy.array(True), slice(0, 2)),
    "1.0": 1.0,
    "'a'": "a",
    "b'a'": b"a",
    "0, 'a'": (0, "a"),
    "a dict": {},
    "a set": {1},
    "a range": range(2),
    "an object": object(),
}

OTHERS = {
    "scalar": {"()": (), "...": ..., ":": slice(None), "0": 0, "None": None, "[]": []},
    "empty": {"()": (), "...": ..., ":": slice(None), "0": 0, "0:0": slice(0, 0), ":, 1": (slice(None), 1), ":, 1:2": (slice(None), slice(1, 2)), "[]": []},
    "none": {"()": (), ":": slice(None), "[]": [], "0": 0},
    "a": {"1": 1, "1, 2": (1, 2), "1, 2, 3": (1, 2, 3), ":, 1:2, ::2": (slice(None), slice(1, 2), slice(None, None, 2)), "..., 1:3": (..., slice(1, 3)),
          "0, ..., -1": (0, ..., -1), ":, :, 4": (slice(None), slice(None), 4), ":, 3": (slice(None), 3), "1, [0, 2]": (1, [0, 2])},
}  # fmt: skip


def sliced(framework: str, name: str, index: Any) -> Call:
    return lambda p, files, out: p.root.safe_open(files / "few.safetensors", framework).get_slice(name)[index]


CALLS: dict[str, Call] = {}
for framework, shown in (("pt", "torch"), ("np", "numpy")):
    for name, index in INDEXES.items():
        CALLS[f"[{name}] for {shown}"] = sliced(framework, "b", index)
    for tensor, indexes in OTHERS.items():
        for name, index in indexes.items():
            CALLS[f"{tensor}[{name}] for {shown}"] = sliced(framework, tensor, index)
