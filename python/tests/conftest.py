"""What the tests run on: the CPU, and a CUDA device where there is one, or only what TENSORHOLD_TEST_DEVICE names.

A test that takes `device` runs once for each device, and one that takes `framework`, too, once for each framework that has tensors there. Where there is no
CUDA device, or a framework is missing, the test is skipped once for that, with the reason.
"""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

import tensorhold

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from support import Spec, import_for, spec, why_not, write  # noqa: E402

NAMED = os.environ.get("TENSORHOLD_TEST_DEVICE")
CUDA_DEVICES = ["pinned", "cuda:0"]
PLACES = {
    "torch": ["cpu", "pinned", "cuda:0"],
    "numpy": ["cpu", "pinned"],
    "jax": ["cpu", "cuda:0"],
    "cupy": ["cuda:0"],
}


def skipped(*values: str, reason: str) -> object:
    return pytest.param(*values, marks=pytest.mark.skip(reason=reason))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" not in metafunc.fixturenames:
        return
    has_cuda = tensorhold.cuda_count() > 0
    devices = [NAMED] if NAMED else ["cpu", *(CUDA_DEVICES if has_cuda else [])]
    no_cuda = [] if has_cuda or NAMED else [("cuda:0", "there is no CUDA device")]
    if "framework" not in metafunc.fixturenames:
        missing = [skipped(device, reason=reason) for device, reason in no_cuda]
        metafunc.parametrize("device", [*devices, *missing])
        return
    there, missing = [], [skipped(device, "any", reason=reason) for device, reason in no_cuda]
    for framework, places in PLACES.items():
        reasons = []
        for device in devices:
            if device in places or device.startswith("cuda:") and "cuda:0" in places:
                reason = why_not(framework, device)
                there += [] if reason else [(device, framework)]
                reasons += [(device, reason)] if reason else []
        missing += [skipped(device, framework, reason=reason) for device, reason in reasons]
    metafunc.parametrize("device,framework", [*there, *missing])


@pytest.fixture
def torch_device(device: str) -> str:
    """A device that torch can use."""
    import_for("torch", device)
    return device


@pytest.fixture
def pool(device: str) -> tensorhold.Pool:
    return tensorhold.Pool(device, name="test")


@pytest.fixture
def few() -> dict[str, Spec]:
    """A scalar, an empty tensor, and some that are not."""
    return {
        "matrix": spec("F32", (3, 5)),
        "scalar": spec("F32", ()),
        "empty": spec("F32", (0, 4)),
        "large": spec("F32", (300, 1000)),
        "ids": spec("I32", (7,)),
    }


@pytest.fixture
def checkpoint(tmp_path: pathlib.Path, few: dict[str, Spec]) -> pathlib.Path:
    return write(tmp_path / "model.safetensors", few, {"format": "pt"})
