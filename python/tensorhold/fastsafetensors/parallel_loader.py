"""`PipelineParallel` and `ParallelLoader`: tensors one after the other, read ahead in batches."""

import logging
import numbers
import os
import time
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, Generator, List, Optional, Sequence, Set, Tuple

from tensorhold import _core
from tensorhold._text import quoted
from tensorhold.fastsafetensors import _planner, _settings
from tensorhold.fastsafetensors._headers import files_of
from tensorhold.fastsafetensors._iteration import Iteration
from tensorhold.fastsafetensors._trace import TimingContext, parse_time
from tensorhold.fastsafetensors.common import SafeTensorsMetadata, SingleGroup
from tensorhold.fastsafetensors.config import check_producers
from tensorhold.fastsafetensors.loader import BaseSafeTensorsFileLoader, SafeTensorsFileLoader

if TYPE_CHECKING:
    from tensorhold.fastsafetensors.frameworks import FrameworkOpBase

__all__ = ["ParallelLoader", "PipelineParallel", "TimingContext", "enable_tqdm", "parse_time"]

logger = logging.getLogger(__name__)

MOST_AHEAD = 1 << 20
"""How many batches are read ahead at most: a longer queue is never full."""

Weights = Generator[Tuple[str, Any], None, None]


def enable_tqdm(use_tqdm_on_load: bool, framework: "Optional[FrameworkOpBase[Any, Any]]" = None) -> bool:
    """Whether a progress bar is shown: on request, on the first rank of the job, and where tqdm is installed."""
    if not use_tqdm_on_load or framework is not None and framework.get_global_rank() != 0:
        return False
    try:
        import tqdm.auto  # noqa: F401
    except ImportError:
        return False
    return True


class PipelineParallel:
    """Tensors of files, each on every rank of the group: file `i` is read by rank `i` modulo the group's size.

    `queue_size` is how many batches wait, read, for the consumer: -1 reads each when it is asked for, 0 one ahead. Batches have at most `max_batch_bytes`, by
    default 1 GiB, or the size of the largest file if that is less. `device_memory_budget` makes batches shorter, and `queue_size` smaller, as needed. The budget
    counts what the consumer keeps: everything, or with `accumulate_resident=False` nothing, or what `resident_tensor` says by name.

    Options for how tensors are read and exchanged (`broadcast_run_bytes`, `broadcast_run_tensors`, `overlap_io`) are accepted and change nothing of what is
    given. `weight_files_batches` lists the files that are loaded together, or, with a limit, their parts.

    Raises `BudgetInfeasibleError` if the tensors do not fit the budget with nothing read ahead.
    """

    def __init__(
        self,
        pg: Optional[Any],
        loader: BaseSafeTensorsFileLoader,
        hf_weights_files: Sequence[str],
        max_concurrent_producers: int = 1,
        queue_size: int = 0,
        use_tqdm_on_load: bool = True,
        tensor_filter: Optional[Callable[[str], bool]] = None,
        max_batch_bytes: Optional[int] = None,
        use_chunk_budget_as_allocation_size: bool = False,
        device_memory_budget: Optional[int] = None,
        accumulate_resident: bool = True,
        resident_tensor: Optional[Callable[[str], bool]] = None,
        broadcast_run_bytes: int = 16 * 1024 * 1024,
        broadcast_run_tensors: int = 64,
        overlap_io: bool = True,
        borrowed_tensors: bool = False,
        **kwargs: Any,
    ) -> None:
        check_producers(max_concurrent_producers)
        group = SingleGroup() if pg is None else pg
        self._size, self._rank = int(group.size()), int(group.rank())
        is_single = self._size == 1 and loader.pg.size() == 1
        if tensor_filter is not None and not is_single:
            raise ValueError(
                f"option tensor_filter: it is for single-process groups, got one of {max(self._size, loader.pg.size())} ranks; "
                "let each rank read all files (all_local=True)"
            )
        if use_chunk_budget_as_allocation_size and max_batch_bytes is None and device_memory_budget is None:
            raise ValueError("use_chunk_budget_as_allocation_size requires max_batch_bytes or device_memory_budget: got neither; set one")
        if resident_tensor is not None and not accumulate_resident:
            raise ValueError("resident_tensor requires accumulate_resident=True: got False, which counts nothing that is kept; leave one of them out")
        if borrowed_tensors and accumulate_resident:
            raise ValueError("borrowed_tensors requires accumulate_resident=False: got True, and borrowed tensors are not kept beyond their batch; set it")
        if borrowed_tensors and not is_single:
            raise ValueError(
                f"borrowed_tensors requires a single-process loader group: got one of {max(self._size, loader.pg.size())} ranks; "
                "leave it out, or let each rank read all files (all_local=True)"
            )
        if broadcast_run_bytes < 0 or broadcast_run_tensors < 0:
            raise ValueError(f"broadcast run limits must be non-negative: got {broadcast_run_bytes} bytes and {broadcast_run_tensors} tensors; leave them out")
        for name, value in (("max_batch_bytes", max_batch_bytes), ("device_memory_budget", device_memory_budget)):
            if value is not None and not isinstance(value, numbers.Real) and not hasattr(value, "__index__"):
                raise TypeError(f"argument {name}: got {quoted(value)} of type {type(value).__name__}, expected a number of bytes; convert it with int()")
        if max_batch_bytes is not None and max_batch_bytes <= 0:
            raise ValueError(f"max_batch_bytes must be positive: got {max_batch_bytes}; leave it out for 1 GiB")
        if not hasattr(queue_size, "__index__"):
            raise TypeError(f"argument queue_size: got {quoted(queue_size)} of type {type(queue_size).__name__}, expected an int; leave it out for 0")
        self.loader = loader
        if tensor_filter is not None:
            loader.set_tensor_filter(tensor_filter)
        self.hf_weights_files = files_of("hf_weights_files", [hf_weights_files] if isinstance(hf_weights_files, (str, os.PathLike)) else hf_weights_files)
        self.max_concurrent_producers = max_concurrent_producers
        self.queue_size = queue_size
        self.use_tqdm_on_load = use_tqdm_on_load
        self.max_batch_bytes = max_batch_bytes
        self.use_chunk_budget_as_allocation_size = use_chunk_budget_as_allocation_size
        self.device_memory_budget = device_memory_budget
        self.accumulate_resident = accumulate_resident
        self.resident_tensor = resident_tensor
        self.borrowed_tensors = borrowed_tensors
        self.broadcast_run_bytes = broadcast_run_bytes
        self.broadcast_run_tensors = broadcast_run_tensors
        self.overlap_io = overlap_io
        # Whether a tensor is independent of its batch, which it is on every rank of a group anyway.
        self.need_clone = self._size == 1 and not borrowed_tensors
        self.print_log = _settings.is_debug()
        self.log_prefix = f"PG{self._rank}"
        self._running: "weakref.WeakSet[Any]" = weakref.WeakSet()
        self._closed = False
        self.weight_files_batches = self._create_batches()

    def _create_batches(self) -> List[List[Any]]:
        """The files that are loaded together, one on each rank. With a limit, the parts of them: the file, the names of tensors and the ranges of bytes in it,
        and the length of the memory for them if that is fixed; None on a rank whose file has no more parts."""
        groups = _planner.groups_of(self.hf_weights_files, self._size)
        if self.max_batch_bytes is None and self.device_memory_budget is None:
            return groups
        metas = {file: SafeTensorsMetadata.from_file(file, self.loader.framework) for file in dict.fromkeys(self.hf_weights_files)}
        limits = self._limits(metas)
        if self.device_memory_budget is not None and self.hf_weights_files:
            self._check_budget()
        keep, parts = self.loader._tensor_filter, []
        for group in groups:
            planned = [(file, limits[file], _planner.plan_chunks(metas[file], limits[file], keep)) for file in group]
            for number in range(max(len(chunks) for _, _, chunks in planned)):
                parts.append([self._part(file, limit, chunks[number]) if number < len(chunks) else None for file, limit, chunks in planned])
        return parts

    def _part(self, file: str, limit: int, chunk: _planner.Chunk) -> Tuple[Any, ...]:
        names, ranges = chunk
        return file, names, ranges, limit if ranges and self.use_chunk_budget_as_allocation_size else None

    def _files_of(self, batch: List[Any]) -> Tuple[Dict[int, List[str]], Optional[Set[str]]]:
        """The files of a batch by rank, and the names of its tensors; None for all."""
        if self.max_batch_bytes is None and self.device_memory_budget is None:
            return {rank: [file] for rank, file in enumerate(batch)}, None
        parts = [(rank, part) for rank, part in enumerate(batch) if part is not None]
        return {rank: [part[0]] for rank, part in parts}, {name for _, part in parts for name in part[1]}

    def _limits(self, metas: Dict[str, SafeTensorsMetadata]) -> Dict[str, int]:
        """The longest part of each file, in bytes. Reduces `queue_size` to what fits the budget."""
        stats = _planner.collect_file_stats([(file, metas[file]) for file in self.hf_weights_files], self.loader._tensor_filter, self.resident_tensor)
        # A tensor that is longer than a batch is a batch of its own.
        longest = None if self.max_batch_bytes is None else max([int(self.max_batch_bytes), *(file.largest_tensor for file in stats)])
        if self.device_memory_budget is None:
            assert longest is not None
            return {file.path: longest for file in stats}
        options: Dict[str, Any] = {
            "max_batch_bytes": longest,
            "accumulate_resident": self.accumulate_resident,
            "group_size": self._size,
            "account_for_yield_clone": self.need_clone and (not self.accumulate_resident or _planner.has_non_resident(stats)),
        }
        budget = int(self.device_memory_budget)
        fitted = _planner.fit_queue_size(self.queue_size, stats, budget, **options)
        if fitted is not None and fitted < self.queue_size:
            message = f"device_memory_budget={budget} does not fit queue_size={self.queue_size}: loading with queue_size={fitted}"
            logger.warning("%s; raise the budget to read further ahead", message)
            self._log_message(message)
        # If no depth fits, the error is that of the least.
        self.queue_size = -1 if fitted is None else fitted
        return dict(zip(self.hf_weights_files, _planner.plan_file_budgets(stats, budget, _planner.load_depth(self.queue_size, self._size), **options)))

    def _check_budget(self) -> None:
        """Checks that the load's own plan fits, too: it counts padding between tensors."""
        iteration = Iteration(self, 0)
        try:
            iteration.check()
        except _core.Error as error:
            self._raise(error)
        finally:
            iteration.close()

    def close(self) -> None:
        """Ends iterations that are under way, and the loader. Tensors that were yielded stay."""
        self._closed = True
        for running in list(self._running):
            running.close()
        self.loader.close()

    def iterate_weights(self) -> Weights:
        """Yields each tensor with its name. In a group all ranks iterate, and get the same tensors in the same order. A yielded tensor owns its memory, but
        for `borrowed_tensors`, which are emptied when the iteration is past their batch. A tensor in several files is yielded for each of them."""
        if self._closed:
            raise _core.ClosedError("iterate over weights: the loader has been closed; make another")
        return self._iterate()

    def _iterate(self) -> Weights:
        begun = time.time()
        self._log_message("Starting ParallelLoader iterate_weights")
        iteration = Iteration(self, min(max(self.queue_size + 1, 0), MOST_AHEAD))
        self._running.add(iteration)
        try:
            if self.hf_weights_files:
                yield from iteration.tensors()
        except GeneratorExit:
            self._log_message(f"iterate_weights closed early: {iteration.done} of {iteration.total} batches fully consumed")
            raise
        except Exception as error:
            self._log_message(f"Consumer error: {error}")
            if isinstance(error, _core.Error):
                self._raise(error)
            raise
        finally:
            self._running.discard(iteration)
            iteration.close()
            self._log_message(
                f"Completed ParallelLoader iterate_weights, processed {iteration.done} batches, total time: {time.time() - begun:.2f} seconds"
            )

    def _raise(self, error: _core.Error) -> None:
        found = _planner.infeasible(error)
        if found is not None:
            raise found from error
        raise error

    def _log_message(self, message: str) -> None:
        """Prints a step of the pipeline, if that is set."""
        if self.print_log:
            print(f"[{self.log_prefix}] {parse_time(time.time())} - {message}", flush=True)

    def _shows_progress(self) -> bool:
        return enable_tqdm(self.use_tqdm_on_load, self.loader.framework)


class ParallelLoader(PipelineParallel):
    """A pipeline with the usual loader. With `all_local` each rank of a group reads all files for itself."""

    def __init__(
        self,
        pg: Optional[Any],
        hf_weights_files: Sequence[str],
        max_concurrent_producers: int = 1,
        queue_size: int = 0,
        use_tqdm_on_load: bool = True,
        device: Any = "cpu",
        bbuf_size_kb: int = 16 * 1024,
        max_threads: int = 16,
        nogds: bool = False,
        set_numa: bool = True,
        debug_log: bool = False,
        framework: str = "pytorch",
        tensor_filter: Optional[Callable[[str], bool]] = None,
        all_local: bool = False,
        max_batch_bytes: Optional[int] = None,
        use_chunk_budget_as_allocation_size: bool = False,
        device_memory_budget: Optional[int] = None,
        accumulate_resident: bool = True,
        resident_tensor: Optional[Callable[[str], bool]] = None,
        use_fgds: bool = False,
        broadcast_run_bytes: int = 16 * 1024 * 1024,
        broadcast_run_tensors: int = 64,
        overlap_io: bool = True,
        borrowed_tensors: bool = False,
        **kwargs: Any,
    ) -> None:
        group = SingleGroup() if all_local else pg
        loader = SafeTensorsFileLoader(
            group, device, bbuf_size_kb, max_threads, nogds, set_numa, debug_log=debug_log, framework=framework, use_fgds=use_fgds, **kwargs
        )
        super().__init__(
            group,
            loader,
            hf_weights_files,
            max_concurrent_producers=max_concurrent_producers,
            queue_size=queue_size,
            use_tqdm_on_load=use_tqdm_on_load,
            tensor_filter=tensor_filter,
            max_batch_bytes=max_batch_bytes,
            use_chunk_budget_as_allocation_size=use_chunk_budget_as_allocation_size,
            device_memory_budget=device_memory_budget,
            accumulate_resident=accumulate_resident,
            resident_tensor=resident_tensor,
            broadcast_run_bytes=broadcast_run_bytes,
            broadcast_run_tensors=broadcast_run_tensors,
            overlap_io=overlap_io,
            borrowed_tensors=borrowed_tensors,
        )
