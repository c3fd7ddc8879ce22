"""`LazyTensorFactory`: a file of a load, and what it holds."""

from typing import Any, Mapping

from tensorhold import _core


class LazyTensorFactory:
    """A file whose tensors are loaded: its path, its tensors by name, and the load that they are shared by."""

    def __init__(self, path: str, tensors: Mapping[str, _core.TensorInfo], shared: Any) -> None:
        self.path = path
        self.tensors = tensors
        self.shared = shared
