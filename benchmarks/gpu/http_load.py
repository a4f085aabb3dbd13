"""Clients of a chat service: concurrent streams, and requests without a pause."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import requests

TIMEOUT_S = 120


@dataclass(frozen=True)
class Streams:
    """Answers of concurrent streams."""

    failed: int  # streams with an error or without an end
    letters: int  # of all answers; a token of the generated models is a letter
    seconds: float
    first_piece_s: float  # median time to the first piece of an answer


def stream_answers(url: str, prompts: Sequence[str], *, model: str, max_tokens: int) -> Streams:
    """Send all prompts to `url`/v1/chat/completions at the same time, and read the streamed
    answers."""
    started = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(
            pool.map(
                lambda prompt: _stream(url, prompt, model=model, max_tokens=max_tokens), prompts
            )
        )
    seconds = time.perf_counter() - started
    complete = [(text, first_s) for text, first_s, ended in answers if ended]
    return Streams(
        failed=len(prompts) - len(complete),
        letters=sum(len(text) for text, _ in complete),
        seconds=seconds,
        first_piece_s=median(first_s for _, first_s in complete) if complete else 0.0,
    )


def _stream(url: str, prompt: str, *, model: str, max_tokens: int) -> tuple[str, float, bool]:
    """Return the text, the seconds to its first piece, and True if the stream ended without an
    error."""
    started, first_s, pieces, ended = time.perf_counter(), 0.0, [], False
    body = _request(prompt, model=model, max_tokens=max_tokens) | {"stream": True}
    try:
        with requests.post(
            f"{url}/v1/chat/completions", json=body, stream=True, timeout=TIMEOUT_S
        ) as answer:
            if answer.status_code != 200:
                print(f"a stream failed with {answer.status_code}: {answer.text[:200]}", flush=True)
                return "", 0.0, False
            for line in answer.iter_lines(chunk_size=None):
                ended = ended or line == b"data: [DONE]"
                for choice in (
                    json.loads(line[6:])["choices"] if line.startswith(b"data: {") else ()
                ):
                    if choice["delta"].get("content"):
                        first_s = first_s or time.perf_counter() - started
                        pieces.append(choice["delta"]["content"])
    except (requests.RequestException, ValueError, KeyError) as error:
        print(f"a stream failed: {type(error).__name__}: {error}", flush=True)
        ended = False
    return "".join(pieces), first_s, ended


def _request(prompt: str, *, model: str, max_tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }


@dataclass
class Load:
    """Counts of the requests that clients sent without a pause."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)  # versions that answered


@contextmanager
def load(
    url: str, prompts: Sequence[str], *, model: str, max_tokens: int, num_clients: int
) -> Iterator[Load]:
    """Send requests from several clients, each after the answer to its last one, until the block
    ends."""
    counts, lock, over = Load(), threading.Lock(), threading.Event()

    def client(number: int) -> None:
        with requests.Session() as session:
            while not over.is_set():
                body = _request(prompts[number % len(prompts)], model=model, max_tokens=max_tokens)
                try:
                    answer = session.post(
                        f"{url}/v1/chat/completions", json=body, timeout=TIMEOUT_S
                    )
                    failure = (
                        None
                        if answer.status_code == 200
                        else f"{answer.status_code}: {answer.text[:200]}"
                    )
                except requests.RequestException as error:
                    failure = f"{type(error).__name__}: {error}"
                with lock:
                    if failure is None:
                        counts.answered += 1
                        counts.versions.add(str(answer.json().get("version")))
                    else:
                        counts.failures.append(failure)

    clients = [
        threading.Thread(target=client, args=(number,), daemon=True)
        for number in range(num_clients)
    ]
    for thread in clients:
        thread.start()
    try:
        yield counts
    finally:
        over.set()
        for thread in clients:
            thread.join()
