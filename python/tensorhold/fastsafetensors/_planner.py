"""The plan of a load within a memory budget: how deep the pipeline is, and how long the parts of each file are. Pure arithmetic on headers.

While a part of file `i` is in flight, the consumer keeps at most what all files up to `i` hold (in a group: up to the last file of the files that are
loaded together), and each part in flight is no longer than the file's own limit, because limits never grow from one file to the next. So the load
fits if, for each file,

    resident + depth * chunk_overhead + (depth * transient_multiplier + clone) * limit <= budget

where `depth` counts parts in flight, and `clone` is 1 if a tensor that the consumer does not keep lives on beside its part.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Iterator, List, Optional, Sequence, Set, Tuple

from tensorhold import _core
from tensorhold._text import quoted

if TYPE_CHECKING:
    from tensorhold.fastsafetensors.common import SafeTensorsMetadata, TensorFrame

Rule = Callable[[str], bool]
Chunk = Tuple[Set[str], List[Tuple[int, int]]]


class BudgetInfeasibleError(ValueError):
    """Not even one tensor at a time, with nothing read ahead, fits the budget."""


def infeasible(error: _core.Error) -> "BudgetInfeasibleError | None":
    """The same error as fastsafetensors' class, if it is about a budget."""
    text = str(error)
    return BudgetInfeasibleError(text) if "already fully serial" in text else None


@dataclass(frozen=True)
class FileWeightStats:
    """Sizes of one file in bytes, of the tensors that are loaded: all of them, from the first to the last, the largest, and those that the consumer keeps.
    `None` for the last means all."""

    path: str
    kept_bytes: int
    span_bytes: int
    largest_tensor: int
    resident_bytes: Optional[int] = None

    @property
    def resident(self) -> int:
        """Bytes that the consumer keeps."""
        return self.kept_bytes if self.resident_bytes is None else self.resident_bytes


def pipeline_depth(queue_size: int) -> int:
    """How many parts are in flight at most: one if nothing is read ahead, else the queue, the part that is read, and the one that the consumer has."""
    return 1 if queue_size < 0 else queue_size + 2


def load_depth(queue_size: int, group_size: int = 1) -> int:
    """The same with the tensor that a rank of a group receives."""
    return pipeline_depth(queue_size) + (group_size > 1)


def selected(metadata: "SafeTensorsMetadata", keep_tensor: Optional[Rule]) -> "Iterator[Tuple[str, TensorFrame]]":
    """The tensors of a file that a rule selects, in the order of their bytes."""
    return ((name, frame) for name, frame in metadata.tensors.items() if keep_tensor is None or keep_tensor(name))


def collect_file_stats(
    metas: "List[Tuple[str, SafeTensorsMetadata]]", keep_tensor: Optional[Rule] = None, resident_tensor: Optional[Rule] = None
) -> List[FileWeightStats]:
    """The sizes of files, by their headers. `keep_tensor` selects what is loaded, `resident_tensor` what the consumer keeps."""
    stats = []
    for path, metadata in metas:
        found = list(selected(metadata, keep_tensor))
        sizes = {name: frame.data_offsets[1] - frame.data_offsets[0] for name, frame in found}
        total = sum(sizes.values())
        resident = sum(size for name, size in sizes.items() if resident_tensor is None or resident_tensor(name))
        span = max(frame.data_offsets[1] for _, frame in found) - found[0][1].data_offsets[0] if total else 0
        stats.append(FileWeightStats(path, total, span, max(sizes.values(), default=0), resident))
    return stats


def has_non_resident(stats: List[FileWeightStats]) -> bool:
    """Whether the consumer keeps less than is loaded."""
    return any(file.resident < file.kept_bytes for file in stats)


def _group_resident(stats: List[FileWeightStats], group_size: int) -> List[int]:
    """What the consumer keeps while each file is loaded: all tensors up to the end of the file's group."""
    totals, total = [], 0
    for file in stats:
        total += file.resident
        totals.append(total)
    ends = (min((number // group_size + 1) * group_size, len(stats)) for number in range(len(stats)))
    return [totals[end - 1] for end in ends]


def _check(transient_multiplier: int, chunk_overhead: int, group_size: int) -> None:
    for name, value, least in (
        ("transient_multiplier", transient_multiplier, 1),
        ("chunk_overhead", chunk_overhead, 0),
        ("group_size", group_size, 1),
    ):
        if value < least:
            raise ValueError(f"plan a load: {name} must be at least {least}: got {value}; correct it")


def plan_file_budgets(
    stats: List[FileWeightStats],
    device_memory_budget: int,
    depth: int,
    max_batch_bytes: Optional[int] = None,
    accumulate_resident: bool = True,
    transient_multiplier: int = 1,
    group_size: int = 1,
    account_for_yield_clone: bool = False,
    chunk_overhead: int = 0,
) -> List[int]:
    """The longest part of each file, in bytes, with which the load fits the budget.

    Raises `BudgetInfeasibleError` if a tensor is longer than the longest part of its file.
    """
    if device_memory_budget <= 0:
        raise BudgetInfeasibleError(
            f"load within a budget: got device_memory_budget={device_memory_budget}, which not even a pipeline that is already fully serial fits; "
            "the budget must be positive; raise it"
        )
    if depth < 1:
        raise ValueError(f"plan a load: depth must be at least 1: got {depth}; correct it")
    _check(transient_multiplier, chunk_overhead, group_size)
    parts = depth * transient_multiplier + account_for_yield_clone
    budgets = []
    for file, resident in zip(stats, _group_resident(stats, group_size)):
        fixed = (resident if accumulate_resident else 0) + (depth * chunk_overhead if file.kept_bytes else 0)
        budget = (device_memory_budget - fixed) // parts
        if max_batch_bytes is not None:
            budget = min(budget, max_batch_bytes)
        if budget < file.largest_tensor:
            needed = fixed + parts * file.largest_tensor
            is_serial = depth <= load_depth(-1, group_size)
            raise BudgetInfeasibleError(
                f"load {file.path!r} within a budget: got device_memory_budget={device_memory_budget} bytes"
                + ("" if max_batch_bytes is None else f" and max_batch_bytes={max_batch_bytes}")
                + f", expected at least {needed}: {fixed} that stay, and {parts} times the largest tensor of {file.largest_tensor} bytes; "
                + (
                    "the pipeline is already fully serial (queue_size=-1); raise the budget, or keep fewer tensors (accumulate_resident, resident_tensor)"
                    if is_serial
                    else "Reduce pipeline depth (queue_size), or raise the budget"
                )
            )
        budgets.append(budget)
    return budgets


def fit_queue_size(
    requested: int,
    stats: List[FileWeightStats],
    device_memory_budget: int,
    max_batch_bytes: Optional[int] = None,
    accumulate_resident: bool = True,
    transient_multiplier: int = 1,
    group_size: int = 1,
    account_for_yield_clone: bool = False,
    chunk_overhead: int = 0,
) -> Optional[int]:
    """The deepest pipeline, up to the requested one, for which `plan_file_budgets` has a plan; None if it has one for no depth."""
    _check(transient_multiplier, chunk_overhead, group_size)
    if device_memory_budget <= 0:
        return None
    depths = []
    for file, resident in zip(stats, _group_resident(stats, group_size)):
        largest = file.largest_tensor
        if largest <= 0:
            continue
        if max_batch_bytes is not None and max_batch_bytes < largest:
            return None
        room = device_memory_budget - (resident if accumulate_resident else 0) - account_for_yield_clone * largest
        depths.append(room // (transient_multiplier * largest + chunk_overhead))
    if not depths:
        return requested
    depth = min(depths) - (group_size > 1)
    if depth < 1:
        return None
    return min(requested, depth - 2 if depth > 1 else -1)


def plan_chunks(
    metadata: "SafeTensorsMetadata", max_batch_bytes: int, keep_tensor: Optional[Rule] = None, merge_gap: int = 4096
) -> List[Chunk]:
    """The parts of a file, each no longer than the limit from its first tensor to its last: the names of its tensors, and where their bytes are in the
    file. Ranges that lie no more than `merge_gap` bytes apart are one.

    Raises `ValueError` if a tensor is longer than the limit.
    """
    chunks: List[Chunk] = []
    first = 0
    for name, frame in selected(metadata, keep_tensor):
        start, end = (metadata.header_length + offset for offset in frame.data_offsets)
        if end - start > max_batch_bytes:
            raise ValueError(
                f"max_batch_bytes={max_batch_bytes} is too small: tensor {quoted(name)} of {metadata.src!r} has {end - start} bytes, "
                "and a part holds whole tensors; raise it"
            )
        if not chunks or end - first > max_batch_bytes:
            chunks.append((set(), []))
            first = start
        names, ranges = chunks[-1]
        names.add(name)
        join(ranges, start, end, merge_gap)
    return chunks


def join(ranges: List[Tuple[int, int]], start: int, end: int, merge_gap: int) -> None:
    """Adds a range of bytes behind others: as a part of the last one if it is near, and not at all if it is empty."""
    if start == end:
        return
    if ranges and start - ranges[-1][1] <= merge_gap:
        ranges[-1] = (ranges[-1][0], end)
    else:
        ranges.append((start, end))


def groups_of(files: Sequence[str], size: int) -> List[List[str]]:
    """Files that are loaded together, one on each rank."""
    return [list(files[first : first + size]) for first in range(0, len(files), size)]
