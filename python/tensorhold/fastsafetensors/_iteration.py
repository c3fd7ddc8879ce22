"""One iteration of a pipeline: its batches, its place in them, and what it holds."""

import contextlib
import logging
import os
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from tensorhold import _core
from tensorhold.fastsafetensors._headers import Infos, check_lengths, read_headers, runs_of
from tensorhold.fastsafetensors._planner import BudgetInfeasibleError
from tensorhold.fastsafetensors._trace import TimingContext
from tensorhold.fastsafetensors.allocation import WEIGHTS, count_in, count_iteration, device_pool
from tensorhold.fastsafetensors.frameworks._native import moves_of
from tensorhold.fastsafetensors.loader import has_own_steps

if TYPE_CHECKING:
    from tensorhold.fastsafetensors.parallel_loader import PipelineParallel

logger = logging.getLogger(__name__)

Tensors = Iterator[Tuple[str, Any]]
Run = List[Tuple[int, str]]


class Iteration:
    """One iteration. `ahead` is how many batches are read ahead of the one that the consumer has."""

    def __init__(self, pipeline: "PipelineParallel", ahead: int) -> None:
        self.pipeline = pipeline
        self.framework = pipeline.loader.framework
        self.device: str = pipeline.loader._place
        self.ahead = ahead
        self.closes: List[Any] = []
        self.ended = False
        self.done, self.total = 0, 0
        # What `get_mem_used` counts, and in which process.
        self.held_bytes, self.process = 0, os.getpid()
        self.kept_bytes = 0
        self.bar: Any = None
        count_iteration(self)

    def close(self) -> None:
        self.ended = True
        self.held_bytes = 0
        while self.closes:
            self.closes.pop().close()
        if self.bar is not None:
            self.bar.close()

    def check(self) -> None:
        """Raises the error that the iteration would begin with if its tensors do not fit the budget."""
        if self.pipeline._size == 1:
            for _ in self.own_runs():
                pass
            return
        files = self.pipeline.hf_weights_files
        headers = read_headers(files)
        for run in runs_of(files, headers):
            order, local, budget = self.share_of(run, headers)
            if local:
                self.batches(local, budget)
            self.keep(order)

    def tensors(self) -> Tensors:
        pipeline = self.pipeline
        shared, size = pipeline.loader.pg.size(), pipeline._size
        if shared != size:
            raise ValueError(f"iterate over weights: got a pipeline of {size} ranks with a loader of {shared}, expected the same group; pass it to both")
        if has_own_steps(pipeline.loader):
            return self.driven()
        return self.relayed() if size > 1 else self.own()

    # A loader whose steps a caller has replaced

    def driven(self) -> Tensors:
        """Batch by batch through the loader's own methods, with nothing read ahead."""
        pipeline, loader = self.pipeline, self.pipeline.loader
        self.total = len(pipeline.weight_files_batches)
        given = loader._tensor_filter
        for number, batch in enumerate(pipeline.weight_files_batches):
            files, names = pipeline._files_of(batch)
            try:
                if names is not None:
                    # A part of files is a load of its tensors alone.
                    loader._tensor_filter = names.__contains__
                with TimingContext("copy_files_to_device", pipeline._log_message, number):
                    loader.add_filenames(files)
                    buffer = loader.copy_files_to_device(allow_inflight=bool(pipeline.overlap_io), borrowed_tensors=bool(pipeline.borrowed_tensors))
            finally:
                loader._tensor_filter = given
                loader.reset()
            self.closes = [buffer]
            try:
                found = list(buffer.key_to_rank_lidx)
                self.show(len(found))
                for name in found:
                    self.step()
                    yield name, buffer.get_tensor(name)
            finally:
                buffer.close()
            self.done += 1

    # A job of one

    def own_runs(self) -> Iterator[Any]:
        """The batches of all files; of files that have tensors in common, one run after the other."""
        files = self.pipeline.hf_weights_files
        check_lengths(files)
        budget = None
        if self.pipeline.device_memory_budget is not None:
            budget = self.budget([info for infos in self.wanted_of(files).values() for info in infos], [])
        try:
            whole = self.batches(files, budget)
        except _core.FormatError:
            runs = runs_of(files, read_headers(files))
            if len(runs) == 1:
                raise
        else:
            yield whole
            return
        for run in runs:
            batches = self.batches([path for _, path in run], budget)
            yield batches
            if budget is not None:
                budget -= int(batches.plan["kept_bytes"])

    def own(self) -> Tensors:
        log = self.pipeline._log_message
        for batches in self.own_runs():
            self.total += int(batches.plan["batches"])
            self.show(int(batches.plan["tensors"]))
            while True:
                number = self.done
                with TimingContext("copy_files_to_device", log, number) as load:
                    weights = next(batches, None)
                if weights is None:
                    break
                self.held_bytes = int(weights.report().bytes)
                tensors = self.framework.take_all(weights)
                del weights
                log(f"Batch {number}: tensor key len: {len(tensors)}")
                count = len(tensors)
                borrowed = [weakref.ref(tensor) for tensor in tensors.values()] if self.pipeline.borrowed_tensors else []
                last = None
                with TimingContext("get_tensor", log, number) as give:
                    try:
                        for name in list(tensors):
                            self.step()
                            if self.moves_out(name):
                                last = weakref.ref(tensors[name])
                            yield name, tensors.pop(name)
                    finally:
                        self.held_bytes = 0
                        with TimingContext("fb.close", log, number) as close:
                            self.give_back(borrowed)
                # A loop's variable still has it: it is not to keep the batch.
                self.move_out(last)
                self.done += 1
                self.summarize(number, load, give, close, count)

    # Several ranks

    def share_of(self, run: Run, headers: Mapping[str, Infos]) -> Tuple[List[Tuple[_core.TensorInfo, int]], List[str], Optional[int]]:
        """The tensors of a run of files, each with the rank that reads it; this rank's files; and the budget of their batches. Every rank computes the
        budgets of all ranks, so that either all refuse or none does."""
        size, own = self.pipeline._size, self.pipeline._rank
        order = [(info, number % size) for number, path in run for info in headers[path]]
        budgets = [
            self.budget([info for info, rank in order if rank == of], [info for info, rank in order if rank != of]) for of in range(size)
        ]
        return order, [path for number, path in run if number % size == own], budgets[own]

    def relayed(self) -> Tensors:
        """File by file, each tensor broadcast by the rank that reads it."""
        pipeline = self.pipeline
        loader = pipeline.loader
        moves, pool = moves_of(loader.pg, self.framework, loader.device), device_pool(self.device, WEIGHTS)
        files = pipeline.hf_weights_files
        headers = read_headers(files)
        self.total = len(files)
        for run in runs_of(files, headers):
            order, local, budget = self.share_of(run, headers)
            batches = None
            try:
                if local:
                    batches = self.batches(local, budget)
            except BaseException:
                with contextlib.suppress(_core.GroupError):
                    _core.go_on(moves, pool, False)
                raise
            _core.go_on(moves, pool, True)
            relay = _core.relay(moves, pool, order, batches)
            self.closes.append(relay)
            self.show(len(order))
            for number, path in run:
                yield from self.relayed_file(relay, number, headers[path])
            # The end of a run is one for all ranks.
            next(relay, None)
            self.keep(order)

    def keep(self, order: List[Tuple[_core.TensorInfo, int]]) -> None:
        """Counts what the consumer keeps of a run."""
        self.kept_bytes += sum(info.nbytes for info, _ in order if self.is_kept(info.name))

    def relayed_file(self, relay: Any, number: int, infos: Infos) -> Tensors:
        pipeline = self.pipeline
        is_own = number % pipeline._size == pipeline._rank
        with TimingContext("get_tensor", pipeline._log_message, number):
            for info in infos:
                name, tensor = next(relay)
                raw = self.framework.take_raw(tensor)
                del tensor
                last = weakref.ref(raw) if is_own and self.moves_out(name) else None
                self.held_bytes = info.nbytes
                self.step()
                try:
                    yield name, raw
                finally:
                    self.held_bytes = 0
                    del raw
                self.move_out(last)
        self.done += 1

    # Budgets

    def moves_out(self, name: str) -> bool:
        """Whether the consumer may have a tensor only until it asks for the next batch."""
        return self.pipeline.device_memory_budget is not None and not self.pipeline.borrowed_tensors and not self.is_kept(name)

    def move_out(self, last: Any) -> None:
        tensor = last() if last is not None else None
        if tensor is not None:
            self.framework.move_out(tensor)

    def budget(self, own: Infos, foreign: Infos) -> Optional[int]:
        """The budget of this rank's own batches: the pipeline's, less one tensor that the consumer still has or that another rank sends, and less all tensors
        from other ranks that are kept."""
        pipeline = self.pipeline
        if pipeline.device_memory_budget is None:
            return None
        budget = int(pipeline.device_memory_budget) - self.kept_bytes
        kept = sum(info.nbytes for info in own + foreign if self.is_kept(info.name))
        # Borrowed tensors are emptied, so the consumer keeps none of them.
        passing = [] if pipeline.borrowed_tensors else foreign + [info for info in own if not self.is_kept(info.name)]
        largest = max((info.nbytes for info in passing), default=0)
        others = largest + sum(info.nbytes for info in foreign if self.is_kept(info.name))
        needed = largest + max(kept, others - largest + max((info.nbytes for info in own), default=0))
        if budget < max(needed, 1):
            raise BudgetInfeasibleError(
                f"load within a budget: got {budget} bytes, expected at least {needed}: for what is kept, the largest tensor, and one that the consumer still has; "
                "the pipeline is already fully serial; raise device_memory_budget, or keep fewer tensors (accumulate_resident, resident_tensor)"
            )
        return budget - others

    def is_kept(self, name: str) -> bool:
        pipeline = self.pipeline
        return pipeline.accumulate_resident and (pipeline.resident_tensor is None or pipeline.resident_tensor(name))

    def wanted_of(self, files: Sequence[str]) -> Dict[str, Infos]:
        keep = self.pipeline.loader._tensor_filter
        headers = read_headers(files)
        return {path: [info for info in infos if keep is None or keep(info.name)] for path, infos in headers.items()}

    def batches(self, files: List[str], budget: Optional[int]) -> Any:
        pipeline = self.pipeline
        options: Dict[str, Any] = {"ahead": self.ahead, "threads": pipeline.loader._threads}
        options["max_batch_bytes"] = self.usual_batch(files) if pipeline.max_batch_bytes is None else int(pipeline.max_batch_bytes)
        keep: Union[bool, Callable[[_core.TensorInfo], bool], None] = None
        if budget is None:
            options["pool"] = device_pool(self.device, WEIGHTS)
        else:
            options["memory_budget"] = budget
            if pipeline.resident_tensor is not None:
                keep = lambda info: bool(self.is_kept(info.name))  # noqa: E731
            elif pipeline.accumulate_resident:
                keep = True
            options["keep"] = keep
        # Regions of one size are of use only where nothing is kept of them.
        options["even_regions"] = bool(pipeline.use_chunk_budget_as_allocation_size) and keep is None
        wanted = pipeline.loader._tensor_filter
        if wanted is not None:
            options["select"] = lambda info: bool(wanted(info.name))
        batches = _core.batches(files, self.device, **options)
        self.closes.append(batches)
        if budget is not None:
            count_in(batches.pool, lambda: self.ended)
        logger.debug("loading in batches: %s", batches.plan)
        return batches

    @staticmethod
    def usual_batch(files: List[str]) -> int:
        """1 GiB, or less where the files are smaller: no more is read at once than a file at a time."""
        # Opening reports files that are missing.
        largest = max((os.path.getsize(file) for file in files if os.path.exists(file)), default=0)
        return max(min(largest, 1 << 30), 1)

    def give_back(self, borrowed: List[Any]) -> None:
        for reference in borrowed:
            tensor = reference()
            if tensor is not None:
                self.framework.let_go(tensor)

    # What is shown

    def show(self, tensors: int) -> None:
        if self.bar is not None:
            self.bar.total += tensors
        elif self.pipeline._shows_progress():
            from tqdm.auto import tqdm

            self.bar = tqdm(total=tensors, unit="tensors", desc="loading")

    def step(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def summarize(self, number: int, load: TimingContext, give: TimingContext, close: TimingContext, tensors: int) -> None:
        self.pipeline._log_message(
            f"Batch {number} summary: copy_files={load.elapsed_ms:.3f}ms, get_tensor_total={give.elapsed_ms:.3f}ms, "
            f"close={close.elapsed_ms:.3f}ms, num_keys={tensors}"
        )
