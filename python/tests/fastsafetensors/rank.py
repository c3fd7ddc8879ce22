"""One rank of a job: does what engines do, checks what it can alone, and writes down digests of what it was given.

Arguments: rank, size, device, a folder, and the files. Run by `test_fst_ranks.py`, one process for each rank.
"""

from __future__ import annotations

import gc
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as distributed

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from support import raw  # noqa: E402

from tensorhold.fastsafetensors import (  # noqa: E402
    ParallelLoader,
    SafeTensorsFileLoader,
    fastsafe_open,
    live_allocation_bytes,
    live_allocation_count,
)
from tensorhold.fastsafetensors.frameworks import ProcessGroupBase, get_framework_op  # noqa: E402
from tensorhold.fastsafetensors.parallel_loader import PipelineParallel  # noqa: E402
from tensorhold.fastsafetensors.st_types import Device, DType  # noqa: E402
from tensorhold.groups import TorchGroup, check_group  # noqa: E402

RANK, SIZE, DEVICE, FOLDER = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4])
FILES = sys.argv[5:]
PLACE = f"cuda:{RANK}" if DEVICE == "cuda" else DEVICE
Digests = list[tuple[str, str, list[int], str]]


def digest(name: str, tensor: torch.Tensor) -> tuple[str, str, list[int], str]:
    assert str(tensor.device) == PLACE
    return name, str(tensor.dtype), list(tensor.shape), hashlib.sha256(raw(tensor)).hexdigest()


def vllm(pg: Any, **options: Any) -> Digests:
    loader = ParallelLoader(
        pg=pg, hf_weights_files=sorted(FILES), use_tqdm_on_load=False, device=PLACE, nogds=pg.size() > 1, **options
    )
    found = []
    try:
        for name, tensor in loader.iterate_weights():
            found.append(digest(name, tensor))
    finally:
        loader.close()
    return found


def sglang(pg: Any) -> Digests:
    found = []
    for first in range(0, len(FILES), pg.size()):
        loader = SafeTensorsFileLoader(pg, torch.device(PLACE), nogds=pg.size() > 1)
        loader.add_filenames({n: [file] for n, file in enumerate(FILES[first : first + pg.size()])})
        fb = loader.copy_files_to_device()
        for key in list(fb.key_to_rank_lidx.keys()):
            found.append(digest(key, fb.get_tensor(key)))
        loader.close()
    return found


def opened(pg: Any) -> Any:
    return fastsafe_open(FILES, pg=pg, device=PLACE, nogds=True)


def parts(pg: Any) -> dict[str, Any]:
    """Compares parts with those that torch cuts of the whole."""
    with opened(pg) as files:
        fb = files.fb
        for name in fb.key_to_rank_lidx:
            whole = fb.get_tensor(name)
            for dim in range(whole.dim()):
                chunks = whole.chunk(pg.size(), dim)
                part = fb.get_sharded(name, dim)
                expected = chunks[pg.rank()] if pg.rank() < len(chunks) else whole.narrow(dim, 0, 0)
                assert part.shape == expected.shape, (name, dim, part.shape, expected.shape)
                assert raw(part) == raw(expected), (name, dim)
            assert torch.equal(fb.get_sharded(name, -1), whole)
            to = len(name) % pg.size()
            pushed = fb.push_tensor(name, to)
            assert (pushed is None) == (to != pg.rank())
            assert pushed is None or raw(pushed) == raw(whole)
        joined = fb.get_multi_cols(["a.weight", "c.weight"], 1).get_raw()
        expected = torch.cat([fb.get_sharded(name, 1) for name in ("a.weight", "c.weight")], 1)
        assert torch.equal(joined, expected)
        shards = fb.as_dict({"a.weight": 0, "b.weight": 2, "a.scalar": -1})
        return {name: shard.get_shape() for name, shard in shards.items()}


def mistakes(pg: Any) -> list[str]:
    """Each is an error on every rank, and none gets the ranks out of step."""
    with opened(pg) as files:
        calls: list[Callable[[], Any]] = [
            lambda: files.get_tensor("nothing"),
            lambda: files.fb.get_sharded("a.weight", 2) if pg.size() > 1 else files.fb.get_multi_cols(["a.weight"], 2),
            lambda: files.fb.push_tensor("a.weight", pg.size()) if pg.size() > 1 else files.get_tensor("nothing"),
            lambda: files.fb.get_multi_cols(["a.weight", "c.weight"], 0),
            lambda: list(files.fb.iter_local_tensors(["a.weight"])) if pg.size() > 1 else files.get_tensor(""),
            lambda: vllm(pg, device_memory_budget=1000),
            lambda: vllm(pg, borrowed_tensors=True, accumulate_resident=False) if pg.size() > 1 else files.get_tensor("nothing"),
            lambda: files.loader.copy_files_to_device(borrowed_tensors=True) if pg.size() > 1 else files.get_tensor("nothing"),
        ]
        told = []
        for call in calls:
            try:
                call()
            except (ValueError, IndexError, RuntimeError) as error:
                told.append(type(error).__name__)
        assert files.get_tensor("a.scalar").shape == ()
    return told


def early(pg: Any) -> None:
    """All ranks stop after the same tensor."""
    loader = ParallelLoader(pg, FILES, use_tqdm_on_load=False, device=PLACE, max_batch_bytes=100)
    iteration = loader.iterate_weights()
    for _ in range(4):
        next(iteration)
    iteration.close()
    loader.close()


class Minimal(ProcessGroupBase[Any]):
    """A group with nothing but the methods of the abstract class."""

    def __init__(self, group: ProcessGroupBase[Any]) -> None:
        self.group = group

    def size(self) -> int:
        return self.group.size()

    def rank(self) -> int:
        return self.group.rank()

    def broadcast(self, dst: Any, rank: int) -> None:
        self.group.broadcast(dst, rank)

    def scatter(self, dst: Any, scatter_list: list[Any], src: int) -> None:
        self.group.scatter(dst, scatter_list, src)

    def send(self, t: Any, dst_rank: int, tag: int) -> None:
        self.group.send(t, dst_rank, tag)

    def recv(self, t: Any, src_rank: int, tag: int) -> None:
        self.group.recv(t, src_rank, tag)


def moves(group: ProcessGroupBase[Any]) -> list[Any]:
    """Tensors that the ranks of a group send one another, of which each is made of the rank that it comes from."""
    op, place = get_framework_op("pytorch"), Device.from_str(PLACE)
    size, own = group.size(), group.rank()

    def of(rank: int) -> Any:
        return op.wrap_tensor(torch.full((2, 3), float(rank), dtype=torch.bfloat16, device=PLACE).t())

    sent = of(own)
    group.broadcast(sent, size - 1)
    part = op.get_empty_tensor([3, 2], DType.BF16, place)
    group.scatter(part, [of(10 + rank) for rank in range(size)] if own == size - 1 else [], size - 1)
    passed = op.get_empty_tensor([3, 2], DType.BF16, place)
    if own == 0 and size > 1:
        group.send(of(20), 1, 7)
    if own == 1:
        group.recv(passed, 0, 7)
    return [sent.get_raw().tolist(), part.get_raw().tolist(), passed.get_raw().tolist() if own == 1 else None]


def subgroup(layout: list[list[int]]) -> dict[str, Any]:
    """The same calls on each group of a layout: on torch's group, on that of the framework layer, and on a minimal one."""
    mine = next(ranks for ranks in layout if RANK in ranks)
    groups = [distributed.new_group(ranks) for ranks in layout]
    group = groups[layout.index(mine)]
    other = groups[1 - layout.index(mine)]
    op = get_framework_op("pytorch")
    wrapped = op.get_process_group(group)
    assert op.get_process_group(wrapped) is wrapped
    try:
        SafeTensorsFileLoader(other, PLACE)
    except ValueError as error:
        refused = str(error)
    pipelines = []
    for pg, loader_pg in ((wrapped, group), (group, wrapped), (Minimal(wrapped), Minimal(wrapped))):
        loader = PipelineParallel(pg, SafeTensorsFileLoader(loader_pg, PLACE), FILES, use_tqdm_on_load=False)
        pipelines.append([digest(name, tensor) for name, tensor in loader.iterate_weights()])
        loader.close()
    found = {
        "rank": group.rank(),
        "size": group.size(),
        "refused": refused,
        "pipelines": [*pipelines, vllm(wrapped), sglang(group), sglang(wrapped)],
        "parts": [parts(group), parts(wrapped), parts(Minimal(wrapped))],
        "moves": [moves(wrapped), moves(Minimal(wrapped))],
    }
    distributed.barrier()
    return found


def main() -> None:
    distributed.init_process_group(
        "nccl" if DEVICE == "cuda" else "gloo", init_method=f"file://{FOLDER / 'meet'}", rank=RANK, world_size=SIZE
    )
    if DEVICE == "cuda":
        torch.cuda.set_device(RANK)
    pg = distributed.group.WORLD
    found: dict[str, Any] = {
        "vllm": [vllm(pg, queue_size=queue_size) for queue_size in (0, 2)],
        "small batches": vllm(pg, max_batch_bytes=100),
        "budget": vllm(pg, device_memory_budget=64 << 20, accumulate_resident=False),
        "borrowed": vllm(pg, borrowed_tensors=True, accumulate_resident=False, all_local=True),
        "all local": vllm(pg, all_local=True),
        "sglang": sglang(pg),
        "parts": parts(pg),
        "mistakes": mistakes(pg),
    }
    check_group(TorchGroup(pg), PLACE)
    early(pg)
    if SIZE == 4:
        found["subgroups"] = [subgroup(layout) for layout in ([[0, 3], [1, 2]], [[0, 1], [2, 3]], [[0, 1, 2], [3]])]
    gc.collect()
    found["left"] = [live_allocation_count(), live_allocation_bytes()]
    (FOLDER / f"found-{RANK}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
