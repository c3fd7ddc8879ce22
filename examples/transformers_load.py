"""A `from_pretrained` that loads by tensorhold, beside the usual one: the embeddings of some sentences are the same.

    python examples/transformers_load.py all-MiniLM-L6-v2/ cuda:0

The folder holds `config.json`, a tokenizer and the weights, as a download of the model does.
"""

import sys
import time

import torch
import transformers

import tensorhold

SENTENCES = ["A hold is where a ship's cargo is stowed.", "Ships carry cargo.", "The embedding of a sentence is a vector."]


def from_pretrained(folder: str, device: str = "cpu", dtype: "torch.dtype | None" = None) -> transformers.PreTrainedModel:
    """The model of the folder's configuration. Its parameters are the loaded tensors themselves: nothing is copied."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    state = tensorhold.load_file(folder, device, dtype=dtype)
    # By a device map, for which `accelerate` has to be installed, the model takes tensors where they are.
    placed = {} if device == "cpu" else {"device_map": {"": device}}
    return kind.from_pretrained(None, config=config, state_dict=state, **placed)


def embed(model: transformers.PreTrainedModel, folder: str, device: str) -> torch.Tensor:
    """The mean of each sentence's token embeddings, as this model is used."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt").to(device)
    with torch.inference_mode():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))


def main(folder: str, device: str = "cpu") -> None:
    embeddings = []
    for name, load in {"tensorhold": from_pretrained, "usual": usual}.items():
        start = time.perf_counter()
        model = load(folder, device).eval()
        print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters in {time.perf_counter() - start:.3f} s")
        embeddings.append(embed(model, folder, device))
    ours, usuals = embeddings
    if not torch.equal(ours, usuals):
        sys.exit("the embeddings differ")
    print(f"the same embeddings; likeness of the first two sentences: {float(ours[0] @ ours[1]):.4f}")


def usual(folder: str, device: str) -> transformers.PreTrainedModel:
    return transformers.AutoModel.from_pretrained(folder).to(device)


if __name__ == "__main__":
    main(*sys.argv[1:])
