"""A service of a classifier, and helpers for its tests."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
import torch
from torch import nn

from serving.deploy import rollout, serve_client
from serving.deploy.application import application_name
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.config.serving import ServingConfig
from tailorbird.models import base_model
from tailorbird.registry import versions as registry
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.hybrids import hybrid_config
from tests.integration.small import BASE_MODEL, REGISTRY, embeddings, register_head

CLASSES = ("a broken bone", "a disease of the eye", "an infection")
TEXTS = ["Fracture of femur", "Cataract of both eyes", "Cholera", "Glaucoma, unspecified", "Plague"]
CONFIG = ServingConfig(max_batch_size=4)


class Service:
    """The versions of a task, and the URL of the deployed one."""

    def __init__(self, task_uri: str, folder: Path) -> None:
        self.task_uri = task_uri
        base = base_model.stage_base_model(parse_model_uri(BASE_MODEL), registry=REGISTRY).uri
        self.first = self._register(base, folder / "first", scale=10.0, temperature=20.0)
        self.second = self._register(base, folder / "second", scale=20.0)
        # The first two class names are swapped, so that its answers differ from those of the first
        # version.
        self.swapped = self._register(
            base, folder / "swapped", scale=10.0, temperature=10.0, order=(1, 0, 2)
        )
        self.url = ""

    def deploy(self, version: registry.ModelVersion) -> None:
        self.url = rollout.deploy(CONFIG, task_uri=self.task_uri, version=version)

    def ask(self, body: Any, *, status: int = 200) -> Any:
        answer = requests.post(f"{self.url}/v1/classify", json=body, timeout=60)
        assert answer.status_code == status, answer.text
        return answer.json()

    def register_hybrid(self, folder: Path, *, routing: Routing) -> registry.ModelVersion:
        """Register a hybrid of the first version and, as the second part, the one with swapped
        classes."""
        registry.write_config(
            folder, hybrid_config(self.first, second=self.swapped, routing=routing)
        )
        return registry.register(self.task_uri, folder)

    def _register(
        self,
        base: str,
        folder: Path,
        *,
        scale: float,
        temperature: float = 1.0,
        order: tuple[int, ...] = (0, 1, 2),
    ) -> registry.ModelVersion:
        """Register a zero-shot version, whose head has the embeddings of the class names in the
        given order."""
        names = scale * nn.functional.normalize(torch.from_numpy(embeddings(base, CLASSES)))
        return register_head(
            self.task_uri,
            folder,
            base=base,
            head={"weight": names[list(order)], "bias": torch.zeros(len(CLASSES))},
            kind="zero_shot",
            classes=CLASSES,
            temperature=temperature,
        )


def metrics_url(node: dict[str, Any]) -> str:
    return f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def replica_pids(task_uri: str) -> set[int | None]:
    return {replica.pid for replica in serve_client.replicas_of(application_name(task_uri))}
