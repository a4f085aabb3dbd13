"""Replicas of tiny real models without Ray: their ASGI application on a port of the loopback
interface."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from serving.replica.chat import Chat
from serving.replica.classifier import Classifier
from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.baselines.classification import fit_bag
from tailorbird.evaluation.baselines.linear_head import HeadData, HeldOut
from tailorbird.models.bag_of_words import BagOfWords, bag_files, fit_vectorizers
from tailorbird.models.endpoint.prompts import label_prompting
from tailorbird.models.retrieval.files import index_files, index_sha256
from tailorbird.models.retrieval.index import build_index
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.versions import (
    ModelVersion,
    Prompting,
    Retrieval,
    VersionConfig,
    register,
    write_config,
)
from tests import small_chat
from tests.build import pairs, version_config
from tests.endpoint_server import MODEL

COST = "14.40 a year at 10,000 requests a month"
CLASSES = ("animals", "plants", "weather")
TEXTS = {
    "animals": ("a cat and a dog", "the dog barks", "two cats sleep", "a bird in a tree"),
    "plants": ("a red rose", "green leaves of a tree", "the rose grows", "moss and fern"),
    "weather": ("rain and wind", "a blue sky at noon", "snow in the morning", "the wind blows"),
}
SYSTEM = "Answer with one word."
ANSWERS = {"what is a cat": "an animal", "what is a rose": "a plant", "what is rain": "weather"}


def register_bag(task_uri: str, folder: Path, *, swapped: bool = False) -> ModelVersion:
    """Register a bag of words that was fitted on `TEXTS`; with `swapped`, it mistakes animals for
    plants."""
    order = ("plants", "animals", "weather") if swapped else CLASSES
    texts = [text for name in order for text in TEXTS[name]]
    labels = np.repeat(np.arange(len(CLASSES)), [len(TEXTS[name]) for name in order])
    vectorizers, terms = fit_vectorizers(texts, num_classes=len(CLASSES))
    fit = fit_bag(HeadData((terms,), labels, (terms,), HeldOut(labels, "accuracy")))
    files = bag_files(BagOfWords(vectorizers, fit.weights[0], fit.bias))
    config = version_config(kind="bag_of_words", classes=CLASSES, temperature=0.5)
    return _register(task_uri, folder, files=files, config=config)


def register_chat(task_uri: str, folder: Path, *, base: str) -> ModelVersion:
    """Register the pretrained chat model at `base` with a system prompt; its answers are random
    letters."""
    prompting = Prompting(system=SYSTEM, max_new_tokens=24)
    return _register(
        task_uri,
        folder,
        config=version_config(kind="zero_shot", prompting=prompting, base_model=base),
    )


def register_nearest(task_uri: str, folder: Path, *, base: str) -> ModelVersion:
    """Register a version that answers with the nearest answer of `ANSWERS`."""
    rows = pairs(list(ANSWERS.items()), chat=True)
    files = index_files(build_index(rows, seed=0))
    retrieval = Retrieval(num_examples=1, max_prompt_tokens=64, index_sha256=index_sha256(files))
    prompting = Prompting(system=SYSTEM, max_new_tokens=24, retrieval=retrieval)
    return _register(
        task_uri,
        folder,
        files=files,
        config=version_config(kind="nearest", prompting=prompting, base_model=base),
    )


def register_cascade(task_uri: str, folder: Path, *, first: ModelVersion, url: str) -> ModelVersion:
    """Register a cascade whose second part is the endpoint at `url`.

    The endpoint answers texts that are not in `ANSWERS`, or for which a classifier is not sure.
    """
    endpoint = Endpoint(url=url, model="m", reported_model=MODEL)
    prompting = (
        label_prompting(first.classes)
        if first.classes
        else Prompting(system=SYSTEM, max_new_tokens=24)
    )
    fields = {
        "prompting": prompting,
        "classes": first.classes,
        "base_model": first.base_model,
        "endpoint": endpoint,
    }
    config = version_config(kind="endpoint_zero_shot", **fields)
    second = _register(task_uri, folder / "second", config=config)
    hybrid = hybrid_config(first, second=second, routing=Routing(by="cascade", threshold=0.99))
    return _register(task_uri, folder / "both", config=hybrid)


def save_chat_base(folder: Path) -> str:
    """Save the tiny pretrained chat model, and return its URI."""
    small_chat.save(folder)
    return folder.as_uri()


def _register(
    task_uri: str, folder: Path, *, config: VersionConfig, files: Mapping[str, bytes] = {}
) -> ModelVersion:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    write_config(folder, config)
    return register(task_uri, folder)


def user_config(champion: ModelVersion, *, verdict: str, **others: ModelVersion) -> dict[str, Any]:
    """Return the `user_config` of a replica with a champion, whose cost is known, and other
    versions by name."""
    refs = {
        name: {"uri": version.uri, "digest": version.digest} for name, version in others.items()
    }
    ref = {"uri": champion.uri, "digest": champion.digest}
    return {
        "champion": ref,
        "selectable": refs,
        "verdict": verdict,
        "costs": {champion.digest: COST},
    }


@contextmanager
def served(replica: Classifier | Chat, config: dict[str, Any]) -> Iterator[str]:
    """Serve a replica that loads a `user_config`, at `/` and at `/letters`, and yield the URL of
    its page."""
    app: Any = _also_at("/letters", replica.__serve_build_asgi_app__())
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    started = Future[None]()

    async def run() -> None:
        try:
            await replica.reconfigure(config)
            serving = asyncio.create_task(server.serve())
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            started.set_result(None)
        except BaseException as error:
            started.set_exception(error)
            raise
        await serving
        for task in replica._replica._background:
            task.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    try:
        started.result(300)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(60)


def _also_at(prefix: str, app: Any) -> Any:
    """Return the application, which also answers below a route prefix, as in Serve."""

    async def with_prefix(scope: Any, receive: Any, send: Any) -> None:
        below = scope["type"] == "http" and scope["path"].startswith(prefix)
        await app(scope | {"root_path": prefix} if below else scope, receive, send)

    return with_prefix


def replica_of(service: type[Classifier] | type[Chat], task_uri: str, **fields: Any) -> Any:
    """Return a replica of a class, for `served`; patch `configure_process`, which needs Ray,
    before."""
    return service(task_uri, ServingConfig(**fields).model_dump_json())
