"""Requests of the parity gate to the service."""

import math
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import requests
from pydantic import JsonValue

from cluster.bearer_auth import bearer
from cluster.certificates import verify
from serving.deploy.serve_client import DeployError
from serving.http.chat_schemas import GeneratedTokenLogprob
from tailorbird.evaluation.statistics.text_metrics import words_sha256
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import PartName

ATTEMPTS = 10
PAUSE_S = 1.0
TIMEOUT_S = 120
BUSY = (408, 429, 502, 503, 504)
_ENDPOINT_FAULT = '"type":"endpoint_'  # in the error of a request whose endpoint failed
KEY = "TAILORBIRD_API_KEY"


class ParityProbe(NamedTuple):
    """A test row as a request, and the version's evaluated answer."""

    row_id: str
    text: str
    body: Mapping[str, JsonValue]
    output: str  # the label, or for chat the sha256 of the answer's words
    confidence: float | None = None  # probability of the label, calibrated; None for chat
    logprobs: tuple[float, ...] | None = None
    """Log-probabilities of the answer's tokens; None for classification and the kind `nearest`."""
    endpoint: Endpoint | None = None  # that answers the request
    part: PartName | None = None  # (hybrids only) the part that is this endpoint


class ServedToken(NamedTuple):
    """A generated token of a served answer."""

    logprob: float  # in nats
    lead: float  # its log-probability minus that of the next most likely token


class ServedAnswer(NamedTuple):
    """The answer to a probe over HTTP."""

    output: str  # see `ParityProbe`; empty if the request was refused
    text: str  # for messages: label, answer, or reason of a refused request
    scores: Mapping[str, float] = {}  # (classification only) probability of each class
    tokens: tuple[ServedToken, ...] = ()  # (language models only)
    reported_model: str | None = None  # (endpoints only) the model that the endpoint reported
    answered_by: PartName | None = None  # (hybrids only)
    is_fallback: bool = False  # (hybrids only) true if the other part should have answered


ProbePair = tuple[ParityProbe, ServedAnswer]


def send_probe(url: str, body: Mapping[str, JsonValue]) -> ServedAnswer:
    """Send one probe and return the answer; retry while the service is busy or a replica restarts.

    A probe is not sent again after a time-out, because an endpoint may have answered it, which
    costs money. Raises DeployError if the service does not answer.
    """
    # The id lets readers of the request log exclude the probe.
    headers = {"x-request-id": f"parity-{uuid.uuid4().hex}"}
    key = os.environ.get(KEY)
    auth = bearer(key) if key else None
    response: requests.Response | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            response = requests.post(
                url, json=body, headers=headers, auth=auth, timeout=TIMEOUT_S, verify=verify()
            )
        except requests.RequestException as error:
            if attempt + 1 == ATTEMPTS or isinstance(error, requests.ReadTimeout):
                fault = type(error).__name__
                raise DeployError(
                    f"{url} does not answer ({fault}); check that this machine can reach Serve"
                ) from None
            continue
        # A replica has not loaded the version yet.
        is_loading = response.status_code == 404 and "model_not_found" in response.text
        if response.status_code not in BUSY and not is_loading:
            break
        # The service has sent the request to the endpoint several times already.
        if _ENDPOINT_FAULT in response.text:
            break
    assert response is not None
    status = response.status_code
    if status in (401, 403):
        raise DeployError(
            f"{url} does not answer test rows ({status}): set {KEY} to a valid API key"
        )
    if status in BUSY:
        raise DeployError(
            f"{url} does not answer test rows ({status}); try again when the service is less busy: "
            f"{response.text[:300]}"
        )
    if status != 200:
        return ServedAnswer("", f"refused with {status}, {response.text[:200]}")
    return _answer(response.json())


def _answer(answer: Mapping[str, Any]) -> ServedAnswer:
    """Return the answer of a chat completion or of a classification of one text."""
    tokens: tuple[ServedToken, ...] = ()
    if "choices" in answer:
        [result] = answer["choices"]
        content = str(result["message"]["content"])
        output = words_sha256(content)
        text = repr(content)
        logprobs = result.get("logprobs") or {"content": []}
        tokens = tuple(map(_served, logprobs["content"]))
    else:
        [result] = answer["results"]
        output = str(result["label"])  # an integer if the labels are integers
        text = output
    return ServedAnswer(
        output,
        text,
        scores=result.get("scores") or {},
        tokens=tokens,
        reported_model=result.get("reported_model"),
        answered_by=result.get("answered_by"),
        is_fallback=bool(result.get("fallback")),
    )


def _served(token: JsonValue) -> ServedToken:
    """Return an entry of OpenAI's `logprobs`, which has the two most likely tokens."""
    entry = GeneratedTokenLogprob.model_validate(token)
    ranked = sorted((top.logprob for top in entry.top_logprobs), reverse=True)
    return ServedToken(entry.logprob, entry.logprob - max(ranked[1:], default=-math.inf))
