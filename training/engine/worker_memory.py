"""The memory of a training worker by purpose, and the properties of a batch that it depends on."""

from dataclasses import dataclass

Parts = dict[str, int]
"""Bytes by purpose."""


@dataclass(frozen=True)
class Batch:
    """Properties of a batch that determine the memory of a forward pass."""

    max_length: int
    max_new_tokens: int = 0  # of an answer to a validation row of a chat task
    packed: bool = False  # conversations packed into one row, with logits at each token; else padded rows
    autocast: bool = False  # linear layers compute in bfloat16
    validation_rows: int | None = None  # of a classification task; None if the number is not known


@dataclass(frozen=True)
class WorkerMemory:
    """Peak memory of a worker in bytes, by purpose."""

    host: Parts
    device: Parts  # memory of its GPU; empty if it trains on CPU
    exporting: Parts  # host memory of rank 0, which exports for its group, if it needs more than `host`; else `host`

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())

    @property
    def exporting_bytes(self) -> int:
        return sum(self.exporting.values())

    def node_bytes(self, num_workers: int, *, num_groups: int) -> int:
        """Return the host memory of a node's workers, with the rank 0 of each of `num_groups` groups among them."""
        return num_workers * self.host_bytes + num_groups * (self.exporting_bytes - self.host_bytes)

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())
