"""The arrays of a remote store, as zarr reads them."""

from typing import TYPE_CHECKING, Any

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from saeflow.errors import SaeflowError
from saeflow.harvest.remote import Remote

if TYPE_CHECKING:
    _Store = ObjectStore[Any]
else:
    _Store = ObjectStore


class RemoteArrays(_Store):
    """What zarr reads a remote store through: failures are told in saeflow's words.

    And an array whose chunk is missing is an error here. zarr would fill it with the
    fill value, which is right only where chunks may be left out, and ours may not.
    """

    def __init__(self, remote: Remote) -> None:
        super().__init__(remote.store, read_only=True)
        self.remote = remote

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """An object, or a part of it; None if it is metadata that does not exist.

        Raises:
            SaeflowError: a chunk is missing, or the server fails.
        """
        with self.remote.told(key):
            found = await super().get(key, prototype, byte_range)
        if found is None and "/c/" in key:
            raise SaeflowError(f"{self.remote.url}/{key} is missing: harvest the store again")
        return found
