"""The number of ranks that hold each model of a comparison together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tailorbird.config.serving import ServingConfig
from tailorbird.data.task_data import DataTask
from tailorbird.models.metadata import read_metadata
from tailorbird.models.tensor_parallel.plan import division_fault


@dataclass(frozen=True)
class Ranks:
    """The number of processes of an evaluation, each with a part of the model, and with a GPU if
    replicas have GPUs."""

    number: int = 1
    reason: str | None = None  # why they are fewer than the GPUs of a replica

    @property
    def note(self) -> str | None:
        """The reason, with what it means for the measured cost; None if there are as many ranks as
        GPUs."""
        if self.reason is None:
            return None
        return (
            f"{self.reason}; the measured cost is an upper bound: all GPUs of a replica for the "
            "time that one needs"
        )


ONE_RANK = Ranks()


def plan_ranks(serving: ServingConfig, divisors: Mapping[str, int]) -> Ranks:
    """Return the ranks for base models with these divisors by URI; see
    `tailorbird.models.tensor_parallel.plan`.

    They are as many as a replica has GPUs, or one if a model cannot be divided among these. Models
    that are compared have the same number, because one process group measures the cost of all.
    """
    num_gpus = max(1, int(serving.gpus_per_replica))
    for uri, divisor in divisors.items():
        if (fault := division_fault(divisor, num_ranks=num_gpus)) is not None:
            return Ranks(1, f"{fault} ({uri}), so it uses one GPU")
    return Ranks(num_gpus)


def comparison_ranks(
    serving: ServingConfig, *, task: DataTask, base_models: Iterable[str]
) -> Ranks:
    """Return the ranks for a comparison of models with the base models at these URIs, which are on
    S3 or disk.

    The base models are read only if a replica has several GPUs. Raises the errors of
    `read_metadata`.
    """
    if serving.gpus_per_replica <= 1:
        return ONE_RANK
    return plan_ranks(
        serving, {uri: read_metadata(uri, task=task).rank_divisor for uri in base_models}
    )
