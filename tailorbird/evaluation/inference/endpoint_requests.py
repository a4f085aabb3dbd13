"""Send requests to an endpoint and store each answer, so that a resumed run sends no request
twice."""

import asyncio
import math
import re
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from typing import Self, TypeVar

from pydantic import TypeAdapter

from cluster.progress import counter
from tailorbird import storage
from tailorbird.config.base import digest
from tailorbird.config.endpoint import EndpointConfig
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.evaluation.inference.endpoint_spend import SpendLimit
from tailorbird.models.endpoint.client import (
    DEFAULT_RETRY,
    Body,
    Connection,
    RetryPolicy,
    complete,
    connect,
    require_model,
)
from tailorbird.models.endpoint.completion import REFUSALS, EndpointAnswer, refused_answer
from tailorbird.models.endpoint.errors import EndpointRefused
from tailorbird.registry.endpoint import Endpoint
from tailorbird.storage.paths import TaskPaths

NUM_READERS = 16  # threads that read stored answers
UNKNOWN = "x"  # in the name of a stored answer: the endpoint did not report a number of tokens
_FILE = re.compile(rf"([0-9a-f]{{64}})-(\d+|{UNKNOWN})-(\d+|{UNKNOWN})\.json")
_ANSWER = TypeAdapter(EndpointAnswer)

T = TypeVar("T")


@dataclass(frozen=True)
class RequestLimits:
    """Limits of the requests to endpoints.

    `timeout_s`, `max_concurrency` and the `max_spend` of a version hold for endpoints that are not
    in `named`.
    """

    timeout_s: float = 60.0  # per request
    max_concurrency: int = 8
    retry: RetryPolicy = DEFAULT_RETRY
    named: tuple[EndpointConfig, ...] = ()  # endpoints of the recipe, which have their own limits

    @classmethod
    def from_config(cls, config: EvaluationConfig) -> Self:
        """Return the limits of a recipe."""
        return cls(named=tuple(config.endpoints.values()))

    def for_endpoint(self, endpoint: Endpoint) -> tuple["RequestLimits", Endpoint]:
        """Return the limits of requests to an endpoint, and the endpoint with the limit of spend
        and the prices that apply.

        They are the recipe's if it names the endpoint, except that prices with which the endpoint
        was registered have precedence.
        """
        for config in self.named:
            if (config.url, config.model) == (endpoint.url, endpoint.model):
                limits = replace(
                    self, timeout_s=config.timeout_s, max_concurrency=config.max_concurrency
                )
                prices = endpoint.prices or config.prices
                fields = {"max_spend": config.max_spend, "prices": prices}
                return limits, endpoint.model_copy(update=fields)
        return self, endpoint


@dataclass
class StoredAnswers:
    """The stored answers of an endpoint for a task."""

    uris: dict[str, str]  # of the answers of this revision, by the hash of the request
    spent: float  # price of the answers of all revisions; NaN if one has no known price


def fetch_answers(
    bodies: Sequence[Body],
    *,
    endpoint: Endpoint,
    parent: str,
    limits: RequestLimits,
    listed: dict[str, StoredAnswers] | None = None,
) -> tuple[EndpointAnswer, ...]:
    """Return the answer to each request, from S3 if it is stored there: under `parent`, a task or a
    batch's output.

    Each new answer is stored before the next request of the same connection starts. All answers
    must be of one model: `endpoint.reported_model` or, if it is None, the model of the first
    answer. A request that the endpoint refuses because of its texts has an empty answer (see
    `EndpointAnswer.refused`), which is stored too. After another error, no request starts, and
    those that have started are completed and stored.

    The stored answers are listed in each call. A caller with many calls gives a dictionary
    `listed`, in which the list remains until an error; answers that another process stores
    meanwhile are neither used nor counted as spend.

    Raises EndpointSpendExceeded if a further request could exceed the limit of spend, the errors of
    `complete`, and ValueError before the first request if the spend is limited and a price is
    missing.
    """
    limits, endpoint = limits.for_endpoint(endpoint)
    endpoint_key = digest({"url": endpoint.url, "model": endpoint.model})[:16]
    root = folder = TaskPaths(parent).endpoint_answers(endpoint_key)
    if endpoint.revision is not None:
        folder += f"/{digest({'revision': endpoint.revision})[:16]}"
    stored = listed.pop(folder, None) if listed else None
    stored = stored or _stored(root, folder=folder, endpoint=endpoint)
    names = [request_sha256(body, url=endpoint.url) for body in bodies]
    answers = _read({name: stored.uris[name] for name in names if name in stored.uris})
    for answer in answers.values():
        if answer.model:
            require_model(answer.model, endpoint=endpoint)
            endpoint = endpoint.model_copy(update={"reported_model": answer.model})
    missing = {name: body for name, body in zip(names, bodies, strict=True) if name not in answers}
    if missing:
        limit = SpendLimit(endpoint, spent=stored.spent)
        sent = _run(_send(missing, endpoint=endpoint, folder=folder, limits=limits, limit=limit))
        for name, answer in sent.items():
            stored.uris[name] = _uri(answer, folder=folder, name=name)
        stored.spent = limit.spent
        answers |= sent
    if listed is not None:
        listed[folder] = stored
    return tuple(answers[name] for name in names)


def request_sha256(body: Body, *, url: str) -> str:
    """Return the hash of a request; its body contains the name of the model, and no request
    contains the API key."""
    return digest({"url": url, "body": dict(body)})


def _run(work: Coroutine[object, object, T]) -> T:
    """Return the result of a coroutine. An interruption cancels it.

    It runs in another thread, because in a notebook this thread already runs an event loop.
    """
    with closing(asyncio.new_event_loop()) as loop, ThreadPoolExecutor(1) as pool:
        task = loop.create_task(work)  # in this context, which has `current_progress`
        try:
            return pool.submit(loop.run_until_complete, task).result()
        finally:
            loop.call_soon_threadsafe(task.cancel)


async def _send(
    bodies: Mapping[str, Body],
    *,
    endpoint: Endpoint,
    folder: str,
    limits: RequestLimits,
    limit: SpendLimit,
) -> dict[str, EndpointAnswer]:
    """Send requests and store their answers.

    They are sent one at a time until an answer shows the model. The first one also shows the
    parameters that the endpoint refuses.
    """
    answers: dict[str, EndpointAnswer] = {}
    failures: list[Exception] = []

    async def work(connection: Connection, requests: Iterator[tuple[str, Body]]) -> None:
        for name, body in requests:
            try:
                async with limit.reserved(body) as count:
                    if failures or count is None:
                        return
                    answer = await _answer(connection, body)
                    await asyncio.to_thread(_store, answer, _uri(answer, folder=folder, name=name))
                    answers[name] = answer
                    count_done(1)
                    count(answer)
            except Exception as error:  # raised below, after the other requests that have started
                failures.append(error)

    pending = iter(bodies.items())
    count_done = counter(len(bodies), unit="requests")
    unpinned = connect(
        endpoint,
        timeout_s=limits.timeout_s,
        max_connections=limits.max_concurrency,
        retry=limits.retry,
    )
    async with aclosing(unpinned) as connection:
        model = endpoint.reported_model
        for request in pending:
            num_answers = len(answers)
            await work(connection, iter([request]))
            model = model or next((each.model for each in answers.values() if each.model), None)
            if model or len(answers) == num_answers:
                break
        if model:
            pinned = endpoint.model_copy(update={"reported_model": model})
            connection = replace(connection, endpoint=pinned)
            workers = [work(connection, pending) for _ in range(limits.max_concurrency)]
            await asyncio.gather(*workers)
    if failures:
        raise failures[0]
    if len(answers) < len(bodies):
        raise limit.exceeded(num_left=len(bodies) - len(answers))
    return answers


async def _answer(connection: Connection, body: Body) -> EndpointAnswer:
    """Return the answer to a request; an empty one if the endpoint refuses it because of its
    texts."""
    try:
        return await complete(connection, body)
    except EndpointRefused as error:
        if error.fault.code not in REFUSALS:
            raise
        return refused_answer(error.fault.code)


def _stored(root: str, *, folder: str, endpoint: Endpoint) -> StoredAnswers:
    """Return the stored answers in `folder`, and the price of all revisions, under `root`.

    The tokens of an answer are part of its name, so it does not have to be read.
    """
    stored = StoredAnswers({}, 0.0)
    for uri in storage.list_files(root, missing_ok=True):
        parent, _, file = uri.rpartition("/")
        match = _FILE.fullmatch(file)
        if match is None:
            continue
        name, num_input, num_output = match.groups()
        if parent.rpartition("/")[2] == folder.rpartition("/")[2]:
            stored.uris[name] = uri
        price = None
        if UNKNOWN not in (num_input, num_output):
            price = endpoint.price(input_tokens=int(num_input), output_tokens=int(num_output))
        stored.spent += math.nan if price is None else price
    return stored


def _uri(answer: EndpointAnswer, *, folder: str, name: str) -> str:
    """Return the URI of an answer. Its tokens are part of it, so that the price is known without
    reading it."""
    counts = (answer.input_tokens, answer.output_tokens)
    parts = [name, *(UNKNOWN if count is None else str(count) for count in counts)]
    return f"{folder}/{'-'.join(parts)}.json"


def _store(answer: EndpointAnswer, uri: str) -> None:
    storage.write_bytes(uri, _ANSWER.dump_json(answer))


def _read(uris: Mapping[str, str]) -> dict[str, EndpointAnswer]:
    with ThreadPoolExecutor(NUM_READERS) as pool:
        contents = pool.map(storage.read_bytes, uris.values())
        answers = map(_ANSWER.validate_json, contents)
        return dict(zip(uris, answers, strict=True))
