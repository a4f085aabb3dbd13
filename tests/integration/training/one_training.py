"""Train in a separate process: `python -m tests.integration.training.one_training DATA URI`.

A second call resumes. The environment configures Ray and S3. Each event is printed as a line of
JSON.
"""

import json
import sys
from dataclasses import asdict

from cluster.connection import connect
from cluster.event_queue import forward_events
from cluster.progress import ProgressEvent, ProgressReporter
from tailorbird.config.training import TrainingConfig
from tests.integration.training.test_training import training_task
from training.trainer import finetune

NUM_EPOCHS, NUM_ROWS = 5, 160
TRAINING = TrainingConfig(
    method="lora", num_workers=1, epochs=NUM_EPOCHS, batch_size=8, learning_rate=1e-3
)


def print_event(event: ProgressEvent) -> None:
    print(json.dumps({"event": type(event).__name__} | asdict(event)), flush=True)


def main(data: str, uri: str) -> None:
    with connect(), forward_events(ProgressReporter(print_event)) as events:
        finetune(TRAINING, task=training_task(data, num_rows=NUM_ROWS), uri=uri, events=events)


if __name__ == "__main__":
    main(*sys.argv[1:])
