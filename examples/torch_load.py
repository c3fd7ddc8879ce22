"""Loads a checkpoint into torch tensors and says how that went; then lets most of them go, and shows that the rest stays.

    python examples/torch_load.py llama/ cuda:0
"""

import sys

import torch

import tensorhold


def main(path: str, device: str = "cpu") -> None:
    with tensorhold.load(path, device, progress=True) as weights:
        report = weights.report()
        print(f"{report.tensors} tensors, {report.bytes:,} bytes in {report.times['total']:.3f} s: {report.gigabytes_per_second:.1f} GB/s")
        for choice in report.choices:
            print(f"  {choice.about}: {choice.picked} ({choice.why})")

        # A tensor shares its bytes with the weights, and keeps them when these are closed.
        name = max(weights, key=lambda name: weights.info(name).nbytes)
        kept = weights[name].torch()
        closed = weights.close()
    print(f"closed: {closed.released_bytes:,} bytes have gone back, {[held.name for held in closed.held]} is held")
    print(f"{name}: {kept.dtype} {tuple(kept.shape)}, mean {kept.to(torch.float32).mean():.6f}")

    # The usual way: all tensors in a dict, each the owner of its memory, half as wide.
    state = tensorhold.load_file(path, device, dtype=torch.bfloat16)
    print(f"converted on the way: {sum(tensor.nbytes for tensor in state.values()):,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
