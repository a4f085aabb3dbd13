"""Requests of the parity gate to the service."""

import math
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import requests
from pydantic import JsonValue

from cluster.bearer_auth import bearer
from cluster.certificates import verify
from serving.deploy.serve_client import DeployError
from serving.http.chat_schemas import GeneratedTokenLogprob
from tailorbird.evaluation.statistics.text_metrics import words_sha256
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
    confidence: float | None  # probability of the label, calibrated; None for chat
    logprobs: tuple[float, ...] | None = None
    """Log-probabilities of the answer's tokens; None for classification and the kind `nearest`."""
    endpoint_part: PartName | None = (
        None  # (hybrids only) the part that must answer, if it is an endpoint
    )


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
    fallback: bool = False  # (hybrids only) true if the other part should have answered


Difference = tuple[ParityProbe, ServedAnswer]


def send_probe(url: str, body: Mapping[str, JsonValue], *, is_paid: bool = False) -> ServedAnswer:
    """Send one probe and return the answer; retry while the service is busy or a replica restarts.

    A probe that `is_paid`, because an endpoint may answer it, is not sent again after a time-out.
    Raises DeployError if the service does not answer.
    """
    headers = {
        "x-request-id": f"parity-{uuid.uuid4().hex}"
    }  # lets readers of the request log exclude it
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
            if attempt + 1 == ATTEMPTS or (is_paid and isinstance(error, requests.ReadTimeout)):
                fault = type(error).__name__
                raise DeployError(
                    f"{url} does not answer ({fault}); check that this machine can reach Serve"
                ) from None
            continue
        # a replica has not loaded it yet
        is_loading = response.status_code == 404 and "model_not_found" in response.text
        if response.status_code not in BUSY and not is_loading:
            break
        if (
            _ENDPOINT_FAULT in response.text
        ):  # the service has sent the request several times already
            raise DeployError(
                f"{url} does not answer test rows ({response.status_code}): {response.text[:300]}"
            )
    assert response is not None
    if response.status_code in (401, 403, *BUSY):
        unauthorized = response.status_code in (401, 403)
        if unauthorized:
            advice = f"set {KEY} to a valid API key"
        else:
            advice = "try again when the service is less busy"
        raise DeployError(f"{url} does not answer test rows ({response.status_code}): {advice}")
    if response.status_code != 200:
        return ServedAnswer("", f"refused with {response.status_code}, {response.text[:200]}")
    answer = response.json()
    if "choices" in answer:
        [choice] = answer["choices"]
        content = str(choice["message"]["content"])
        logprobs = choice.get("logprobs") or {"content": []}
        tokens = tuple(map(_served, logprobs["content"]))
        return ServedAnswer(words_sha256(content), repr(content), tokens=tokens, **_source(choice))
    result = answer["results"][0]
    label = str(result["label"])  # an integer if the labels are integers
    return ServedAnswer(label, label, result.get("scores") or {}, **_source(result))


class _Source(TypedDict):
    reported_model: str | None
    answered_by: PartName | None
    fallback: bool


def _source(answer: Mapping[str, Any]) -> _Source:
    return {
        "reported_model": answer.get("reported_model"),
        "answered_by": answer.get("answered_by"),
        "fallback": bool(answer.get("fallback")),
    }


def _served(token: JsonValue) -> ServedToken:
    """Return an entry of OpenAI's `logprobs`, which has the two most likely tokens."""
    entry = GeneratedTokenLogprob.model_validate(token)
    others = sorted((other.logprob for other in entry.top_logprobs), reverse=True)[1:]
    return ServedToken(entry.logprob, entry.logprob - max(others, default=-math.inf))
