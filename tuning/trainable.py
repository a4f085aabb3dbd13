"""Ray Tune's Trainable: it submits a trial's configuration to the TrialBroker, and each step
returns one epoch."""

from typing import Any

import ray
from ray import tune

from tuning.trial_record import SampledValues


class BrokeredTrainable(tune.Trainable):  # type: ignore[misc]
    """A Tune actor that waits for the reports of a trial. Tune reuses it for several trials."""

    RESOURCES = {"CPU": 0, "memory": 128 * 2**20}  # noqa: RUF012  no CPU, because worker groups need all of them

    def setup(self, config: SampledValues, broker: Any = None) -> None:
        self._broker = broker
        self._submit(config)

    def step(self) -> dict[str, Any]:
        report = ray.get(self._broker.next_report.remote(self.trial_id))
        return {"score": report.score, "done": report.done}

    def reset_config(self, new_config: SampledValues) -> bool:
        self.cleanup()  # Tune does not call it between the trials of a reused actor
        self._submit(new_config)
        return True

    def cleanup(self) -> None:
        ray.get(self._broker.cancel.remote(self._submitted_id))

    def _submit(self, config: SampledValues) -> None:
        self._submitted_id: str = self.trial_id
        ray.get(self._broker.submit.remote(self.trial_id, config))
