"""transformers and diffusers save and load through `tensorhold.safetensors` without a change, and get what they get with safetensors."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

TRANSFORMERS = """
import torch, transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

def model(tied):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         tie_word_embeddings=tied)
    return LlamaForCausalLM(config).eval()

ids = torch.arange(12).reshape(2, 6)
for tied in (True, False):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for size in ("1GB", "30KB"):
            folder = f"llama-{tied}-{dtype}-{size}"
            saved = model(tied).to(dtype)
            saved.save_pretrained(folder, max_shard_size=size)
            for options in ({"dtype": dtype}, {"dtype": torch.float32}, {"dtype": dtype, "disable_mmap": True}):
                loaded = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
                with torch.no_grad():
                    logits = loaded(ids).logits.float()
                record(f"{folder} {options}", loaded.state_dict(), logits)
                assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
files("llama-*")
used = transformers.modeling_utils.safe_open
"""

DIFFUSERS = """
import torch, diffusers
from diffusers import AutoencoderKL, UNet2DModel

def models():
    torch.manual_seed(0)
    yield UNet2DModel(sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 32), norm_num_groups=8,
                      down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    yield AutoencoderKL(in_channels=3, out_channels=3, block_out_channels=(32,), norm_num_groups=8, latent_channels=4)

def output(model):
    sample = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).to(model.dtype)
    with torch.no_grad():
        return (model(sample, 1) if isinstance(model, UNet2DModel) else model.encode(sample).latent_dist).__dict__

for number, model in enumerate(models()):
    for size in ("1GB", "200KB"):
        for variant, dtype in ((None, torch.float32), ("fp16", torch.float16)):
            folder = f"diffusers-{number}-{size}-{variant}"
            model.to(dtype).eval().save_pretrained(folder, max_shard_size=size, variant=variant)
            for options in ({}, {"torch_dtype": torch.float32}, {"low_cpu_mem_usage": False}, {"disable_mmap": True}):
                loaded = type(model).from_pretrained(folder, variant=variant, **options).eval()
                outputs = [value.float() for value in output(loaded.to(torch.float32)).values() if isinstance(value, torch.Tensor)]
                record(f"{folder} {options}", loaded.state_dict(), *outputs)
        model.to(torch.float32)
files("diffusers-*")
used = diffusers.models.model_loading_utils.safetensors.torch.load_file
"""

PROGRAM = """
import hashlib, json, pathlib
import safetensors, safetensors.torch
found = {}

def digest(tensor):
    return f"{tensor.dtype} {tuple(tensor.shape)} " + hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()

def record(name, state, *outputs):
    found[name] = {key: digest(tensor) for key, tensor in state.items()}, [digest(output) for output in outputs]

def files(pattern):
    for folder in sorted(pathlib.Path().glob(pattern)):
        for file in sorted(folder.glob("*.safetensors")):
            found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()

$BODY
found["where"] = safetensors.__name__, used.__module__
pathlib.Path("found.json").write_text(json.dumps(found))
"""

INSTALL = "import tensorhold\ntensorhold.install_as_safetensors()\n"


def run(folder: pathlib.Path, body: str, first: str = "", under: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a program finds, which runs in a folder of its own."""
    folder.mkdir()
    (folder / "program.py").write_text(first + PROGRAM.replace("$BODY", body))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *under, "program.py"], cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize("engine,body", [("transformers", TRANSFORMERS), ("diffusers", DIFFUSERS)])
def test_models_are_saved_and_loaded_as_with_safetensors(engine: str, body: str, tmp_path: pathlib.Path) -> None:
    for needed in ("torch", "numpy", "safetensors", engine):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    theirs = run(tmp_path / "theirs", body)
    assert theirs.pop("where")[0] == "safetensors"
    assert len(theirs) > 20
    for name, arguments in {
        "installed": {"first": INSTALL},
        "under run": {"under": ("-m", "tensorhold.run", "--as", "safetensors", "--")},
    }.items():
        ours = run(tmp_path / name, body, **arguments)  # type: ignore[arg-type]
        package, used = ours.pop("where")
        assert package == "tensorhold.safetensors" and used.startswith("tensorhold.safetensors"), (package, used)
        assert ours == theirs, sorted(key for key in theirs if ours.get(key) != theirs[key])
