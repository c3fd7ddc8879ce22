"""The steps of a pipeline with their times, for its trace."""

import time
from typing import Any, Callable, Optional


def parse_time(timestamp_ms: float) -> str:
    """A time in seconds since the epoch as text, to the millisecond."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp_ms)) + f".{int(timestamp_ms % 1 * 1000):03d}"


class TimingContext:
    """A block whose time is passed to `logger` at its end, if it took at least `threshold_ms` or raised an error."""

    def __init__(
        self,
        name: str,
        logger: Optional[Callable[[str], None]] = None,
        batch_id: Optional[int] = None,
        threshold_ms: float = 0,
        log_on_exit: bool = True,
    ) -> None:
        self.name = name
        self.logger = logger
        self.batch_id = batch_id
        self.threshold_ms = threshold_ms
        self.log_on_exit = log_on_exit
        self.start_time: Optional[float] = None
        self.elapsed_ms: float = 0

    def __enter__(self) -> "TimingContext":
        self.start_time = time.time()
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        if self.start_time is not None:
            self.elapsed_ms = (time.time() - self.start_time) * 1000
        if self.logger is None or not self.log_on_exit or exc_type is None and self.elapsed_ms < self.threshold_ms:
            return
        of = "" if self.batch_id is None else f"Batch {self.batch_id}: "
        self.logger(f"{of}{self.name} took {self.elapsed_ms:.3f} ms")
