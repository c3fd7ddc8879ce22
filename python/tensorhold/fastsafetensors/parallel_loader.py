"""`PipelineParallel` and `ParallelLoader`: tensors one after the other, read ahead in batches."""

import contextlib
import logging
import os
import weakref
from typing import Any, Callable, Dict, Generator, Iterator, List, Optional, Sequence, Tuple, Union

from tensorhold import _core
from tensorhold.fastsafetensors import _settings
from tensorhold.fastsafetensors._planner import BudgetInfeasibleError, infeasible
from tensorhold.fastsafetensors.allocation import count_in, device_pool
from tensorhold.fastsafetensors.config import check_producers
from tensorhold.fastsafetensors.frameworks import native_name
from tensorhold.fastsafetensors.loader import BaseSafeTensorsFileLoader, SafeTensorsFileLoader, check_lengths, files_of, read_headers

logger = logging.getLogger(__name__)

Weights = Generator[Tuple[str, Any], None, None]


class PipelineParallel:
    """Tensors of files, each on every rank of the group: file `i` is read by rank `i` modulo the group's size.

    `queue_size` is how many batches wait, read, for the consumer: -1 reads each when it is asked for, 0 one ahead. Batches have at most `max_batch_bytes`, by
    default 1 GiB, or the size of the largest file if that is less; `device_memory_budget` makes them fewer and smaller, as it needs. The budget counts what the consumer keeps: everything, or with
    `accumulate_resident=False` nothing, or what `resident_tensor` says by name.

    Options for how it is read and exchanged (`broadcast_run_bytes`, `broadcast_run_tensors`, `overlap_io`) are taken and change nothing of what is given.
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
        if use_chunk_budget_as_allocation_size and max_batch_bytes is None and device_memory_budget is None:
            raise ValueError("use_chunk_budget_as_allocation_size requires max_batch_bytes or device_memory_budget: got neither; set one")
        if resident_tensor is not None and not accumulate_resident:
            raise ValueError("resident_tensor requires accumulate_resident=True: got False, which counts nothing that is kept; leave one of them out")
        if borrowed_tensors and accumulate_resident:
            raise ValueError("borrowed_tensors requires accumulate_resident=False: got True, and borrowed tensors are not kept beyond their batch; set it")
        if broadcast_run_bytes < 0 or broadcast_run_tensors < 0:
            raise ValueError(f"broadcast run limits must be non-negative: got {broadcast_run_bytes} bytes and {broadcast_run_tensors} tensors; leave them out")
        if max_batch_bytes is not None and max_batch_bytes <= 0:
            raise ValueError(f"max_batch_bytes must be positive: got {max_batch_bytes}; leave it out for 1 GiB")
        self.loader = loader
        self.framework = loader.framework
        self.pg = self.framework.get_process_group(pg)
        if tensor_filter is not None and self.pg.size() > 1:
            raise ValueError(
                f"option tensor_filter: it is for single-process groups, got one of {self.pg.size()} ranks; let each rank read all files (all_local=True)"
            )
        self.hf_weights_files = files_of("hf_weights_files", [hf_weights_files] if isinstance(hf_weights_files, (str, os.PathLike)) else hf_weights_files)
        self.queue_size = queue_size
        self.use_tqdm_on_load = use_tqdm_on_load
        self.tensor_filter = tensor_filter
        self.max_batch_bytes = max_batch_bytes
        self.use_chunk_budget_as_allocation_size = use_chunk_budget_as_allocation_size
        self.device_memory_budget = device_memory_budget
        self.accumulate_resident = accumulate_resident
        self.resident_tensor = resident_tensor
        self.borrowed_tensors = borrowed_tensors
        self._running: "weakref.WeakSet[Any]" = weakref.WeakSet()
        self._closed = False

    def close(self) -> None:
        """Ends iterations that are under way, and the loader. What was given stays."""
        self._closed = True
        for running in list(self._running):
            running.close()
        self.loader.close()

    def iterate_weights(self) -> Weights:
        """Gives each tensor with its name. In a group all ranks iterate, and get the same tensors in the same order. What is given owns its memory, but
        for `borrowed_tensors`, which are emptied when the iteration is past their batch."""
        if self._closed:
            raise _core.ClosedError("iterate over weights: the loader has been closed; make another")
        return self._iterate()

    def _iterate(self) -> Weights:
        if not self.hf_weights_files:
            return
        run = _Run(self)
        self._running.add(run)
        try:
            yield from run.tensors()
        except _core.Error as error:
            self._raise(error)
        finally:
            self._running.discard(run)
            run.close()
            if run.done < run.total and _settings.is_debug():
                print(f"iterate_weights closed early: {run.done} of {run.total} batches were consumed")

    def _raise(self, error: _core.Error) -> None:
        found = infeasible(error)
        if found is not None:
            raise found from error
        raise error


class _Run:
    """One iteration: its batches, and how far it is."""

    def __init__(self, pipeline: PipelineParallel) -> None:
        self.pipeline = pipeline
        self.framework = pipeline.framework
        self.device = native_name(pipeline.loader.device)
        self.closes: List[Any] = []
        self.ended = False
        self.done, self.total = 0, 1
        self.bar: Any = None

    def close(self) -> None:
        self.ended = True
        while self.closes:
            self.closes.pop().close()
        if self.bar is not None:
            self.bar.close()

    def tensors(self) -> Iterator[Tuple[str, Any]]:
        if self.pipeline.pg.size() > 1:
            return self.relayed()
        files = self.pipeline.hf_weights_files
        check_lengths(files)
        budget = None
        if self.pipeline.device_memory_budget is not None:
            wanted = self.wanted()
            infos = read_headers(files)[0]
            budget = self.budget([info for info in infos if wanted is None or wanted(info.name)], [])
        batches = self.batches(files, budget)
        self.total = batches.plan["batches"]
        self.show(batches.plan["tensors"])
        return self.own(batches)

    def own(self, batches: Any) -> Iterator[Tuple[str, Any]]:
        """Without a group."""
        for weights in batches:
            tensors = self.framework.take_all(weights)
            del weights
            borrowed = [weakref.ref(tensor) for tensor in tensors.values()] if self.pipeline.borrowed_tensors else []
            last = None
            try:
                for name in list(tensors):
                    self.step()
                    if self.moves_out(name):
                        last = weakref.ref(tensors[name])
                    yield name, tensors.pop(name)
                self.done += 1
            finally:
                self.give_back(borrowed)
            # A loop's variable still has it: it is not to keep the batch.
            self.move_out(last)

    def relayed(self) -> Iterator[Tuple[str, Any]]:
        """In a group: file by file, each tensor broadcast by the rank that reads it."""
        pipeline, size, own = self.pipeline, self.pipeline.pg.size(), self.pipeline.pg.rank()
        files = pipeline.hf_weights_files
        rank_of = {file: number % size for number, file in enumerate(files)}
        order = [(info, rank_of[info.file]) for info in read_headers(files)[0]]
        # Asked for each rank by all ranks, so that all refuse a budget or none does.
        budgets = [
            self.budget([info for info, rank in order if rank == of], [info for info, rank in order if rank != of]) for of in range(size)
        ]
        pool, batches = device_pool(self.device), None
        local = files[own::size]
        try:
            if local:
                batches = self.batches(local, budgets[own])
        except BaseException:
            with contextlib.suppress(_core.GroupError):
                _core.go_on(pipeline.pg.moves(), pool, False)
            raise
        _core.go_on(pipeline.pg.moves(), pool, True)
        relay = _core.relay(pipeline.pg.moves(), pool, order, batches)
        self.closes.append(relay)
        self.total = len(order)
        self.show(len(order))
        for (name, tensor), (_, rank) in zip(relay, order):
            raw = self.framework.take_raw(tensor)
            borrowed = [weakref.ref(raw)] if pipeline.borrowed_tensors else []
            last = weakref.ref(raw) if rank == own and self.moves_out(name) else None
            self.step()
            self.done += 1
            try:
                yield name, raw
            finally:
                del raw
                self.give_back(borrowed)
            self.move_out(last)

    def moves_out(self, name: str) -> bool:
        """Whether the consumer may have a tensor no longer than until it asks for the next batch."""
        return self.pipeline.device_memory_budget is not None and not self.is_kept(name)

    def move_out(self, last: Any) -> None:
        tensor = last() if last is not None else None
        if tensor is not None:
            self.framework.move_out(tensor)

    def budget(self, own: List[_core.TensorInfo], foreign: List[_core.TensorInfo]) -> Optional[int]:
        """What of the budget is left to this rank's own batches: beside a tensor that the consumer still has, or that comes from another rank, and all from
        others that is kept."""
        budget = self.pipeline.device_memory_budget
        if budget is None:
            return None
        kept = sum(info.nbytes for info in own + foreign if self.is_kept(info.name))
        passing = foreign + [info for info in own if not self.is_kept(info.name)]
        largest = max((info.nbytes for info in passing), default=0)
        others = largest + sum(info.nbytes for info in foreign if self.is_kept(info.name))
        needed = largest + max(kept, others - largest + max((info.nbytes for info in own), default=0))
        if budget < max(needed, 1):
            raise BudgetInfeasibleError(
                f"load within a budget: got {budget} bytes, expected at least {needed}: for what is kept, the largest tensor, and one that the consumer still has; "
                "the pipeline is already fully serial; raise device_memory_budget, or keep fewer tensors (accumulate_resident, resident_tensor)"
            )
        return budget - others

    def wanted(self) -> Optional[Callable[[str], bool]]:
        """The rule for what is loaded."""
        return self.pipeline.tensor_filter or self.pipeline.loader._keep

    def is_kept(self, name: str) -> bool:
        pipeline = self.pipeline
        return pipeline.accumulate_resident and (pipeline.resident_tensor is None or pipeline.resident_tensor(name))

    def batches(self, files: List[str], budget: Optional[int]) -> Any:
        pipeline = self.pipeline
        options: Dict[str, Any] = {"ahead": max(pipeline.queue_size + 1, 0), "threads": pipeline.loader._threads}
        options["max_batch_bytes"] = pipeline.max_batch_bytes or self.usual_batch(files)
        keep: Union[bool, Callable[[_core.TensorInfo], bool], None] = None
        if budget is None:
            options["pool"] = device_pool(self.device)
        else:
            options["memory_budget"] = budget
            if pipeline.resident_tensor is not None:
                keep = lambda info: self.is_kept(info.name)  # noqa: E731
            elif pipeline.accumulate_resident:
                keep = True
            options["keep"] = keep
        # Regions of one size are of use only where nothing is kept of them.
        options["even_regions"] = pipeline.use_chunk_budget_as_allocation_size and keep is None
        wanted = self.wanted()
        if wanted is not None:
            options["select"] = lambda info: wanted(info.name)
        batches = _core.batches(files, self.device, **options)
        self.closes.append(batches)
        if budget is not None:
            count_in(batches.pool, lambda: self.ended)
        logger.debug("loading in batches: %s", batches.plan)
        return batches

    @staticmethod
    def usual_batch(files: List[str]) -> int:
        """1 GiB, or less where the files are smaller: no more is read at once than a file at a time."""
        # One that is not there is told when it is opened.
        largest = max((os.path.getsize(file) for file in files if os.path.exists(file)), default=0)
        return max(min(largest, 1 << 30), 1)

    def give_back(self, borrowed: List[Any]) -> None:
        for reference in borrowed:
            tensor = reference()
            if tensor is not None:
                self.framework.let_go(tensor)

    def show(self, tensors: int) -> None:
        if not self.pipeline.use_tqdm_on_load or self.pipeline.pg.rank() != 0:
            return
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return
        self.bar = tqdm(total=tensors, unit="tensors", desc="loading")

    def step(self) -> None:
        if self.bar is not None:
            self.bar.update()


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
        group = None if all_local else pg
        loader = SafeTensorsFileLoader(
            group, device, bbuf_size_kb, max_threads, nogds, set_numa, debug_log=debug_log, framework=framework, use_fgds=use_fgds
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
