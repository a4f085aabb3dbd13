"""A trial as Ray Tune sees it: hands its configuration to the desk, and each step brings one epoch's report back."""

from typing import Any

import ray
from ray import tune

from tailorbird.config.training import TrainingConfig
from tuning.search_space import trial_config


class BrokeredTrainable(tune.Trainable):  # type: ignore[misc]
    """Computes nothing itself; one actor is reused for trial after trial."""

    RESOURCES = {"CPU": 0, "memory": 128 * 2**20}  # noqa: RUF012  no CPU: the worker group has them all

    def setup(self, config: dict[str, Any], desk: Any = None, training: TrainingConfig | None = None) -> None:
        assert training is not None
        self._desk, self._training = desk, training
        self._begin(config)

    def step(self) -> dict[str, Any]:
        report = ray.get(self._desk.next_report.remote(self.trial_id))
        self._scores.append(report["score"])
        return {
            "score": report["score"],
            "scores": list(self._scores),
            "epochs_left": self._epochs - len(self._scores),
            "done": report["over"],
        }

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()  # Tune calls it not between the trials of a reused actor
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        ray.get(self._desk.call_off.remote(self._current))

    def _begin(self, config: dict[str, Any]) -> None:
        self._current: str = self.trial_id
        self._scores: list[float] = []
        self._epochs = trial_config(self._training, config).epochs
        ray.get(self._desk.submit.remote(self.trial_id, config))
