"""`LazyTensorFactory`: a file of a load, and the tensors in it."""

from typing import TYPE_CHECKING, Callable, Mapping

from tensorhold import _core

if TYPE_CHECKING:
    from tensorhold.fastsafetensors.common import SafeTensorsMetadata


class LazyTensorFactory:
    """A file whose tensors are loaded: its path, its rank, and its tensors by name. Loaders make these."""

    def __init__(
        self, path: str, infos: Mapping[str, _core.TensorInfo], rank: int, metadata_of: "Callable[[str], SafeTensorsMetadata]"
    ) -> None:
        self.path = path
        self.infos = infos
        self.rank = rank
        self._metadata_of = metadata_of

    @property
    def metadata(self) -> "SafeTensorsMetadata":
        """The file's header, which is read when it is first asked for."""
        return self._metadata_of(self.path)
