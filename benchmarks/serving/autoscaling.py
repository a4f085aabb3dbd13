"""Replicas that come and go with the load: from zero, to the maximum, back, and to zero again.

    python -m benchmarks.serving.autoscaling

One application with `min_replicas: 0`, `max_replicas: 3`, four requests in flight a replica aimed at, ten seconds
until the last one may go, and the recipe's other defaults, on a stack of its own that declares a CPU for each replica,
whether or not the machine has them. The load: nothing, until no replica is left; a burst of 24 requests at once, which
waits for the cold start and must not start more than one replica; 12 clients that each ask again when they are
answered, until there are three; one client, until there is one; nothing, until there is none. A figure is the time from
a change of the load to that of the replicas; "none" is when the last has ended, since one that ends still answers.
Every request must be answered with 200. It ends the stack.
"""

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import requests

from benchmarks.rounds import finish, print_table
from benchmarks.serving.serving_overhead import own_stack, random_version
from serving.deploy import application, rollout, serve_client
from tailorbird.config.serving import ServingConfig

TASK_URI = "s3://models/autoscaling"
CONFIG = ServingConfig(min_replicas=0, max_replicas=3, target_ongoing_requests=4, downscale_to_zero_delay_s=10)
BURST, MANY, WATCH_S, LIMIT_S = 24, 12, 15, 180
BOUNDS = {"failed": "<= 0", "most_after_cold_start": "<= 1"}


def main() -> None:
    """Prints the table, then one line of JSON."""
    num_cpus = CONFIG.max_replicas + 1
    with tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary, own_stack(Path(temporary), num_cpus):
        version = random_version(Path(temporary) / "version", task_uri=TASK_URI)
        figures, statuses = measure(rollout.deploy(CONFIG, task_uri=TASK_URI, version=version))
    print(f"answers: {dict(statuses)}")
    print_table("Seconds until the replicas follow the load", {"autoscaling": figures})
    finish("autoscaling", figures, bounds=BOUNDS)


def measure(url: str) -> tuple[dict[str, float], Counter[str]]:
    """Seconds from each change of the load to the replicas', and how often which answer came."""
    statuses: Counter[str] = Counter()
    figures = {"idle_to_zero_s": _seconds_until(lambda: num_replicas() == 0)}
    begin = time.monotonic()
    with ThreadPoolExecutor(BURST) as clients:
        burst = [clients.submit(ask, url, statuses) for _ in range(BURST)]
        most = most_running(until=lambda: all(client.done() for client in burst))
        figures["cold_start_s"] = time.monotonic() - begin
    end = time.monotonic() + WATCH_S
    with clients_that_ask(url, statuses, num_clients=1):  # else the one that started could go before it was watched
        figures["most_after_cold_start"] = max(most, most_running(until=lambda: time.monotonic() > end))
    with clients_that_ask(url, statuses, num_clients=MANY):
        figures["one_to_three_s"] = _seconds_until(lambda: num_replicas("RUNNING") == CONFIG.max_replicas)
        time.sleep(5)  # answered by all of them
    with clients_that_ask(url, statuses, num_clients=1):
        figures["three_to_one_s"] = _seconds_until(lambda: num_replicas("RUNNING") == 1)
    figures["one_to_zero_s"] = _seconds_until(lambda: num_replicas() == 0)
    return figures | {"failed": statuses.total() - statuses["200"]}, statuses


def ask(url: str, statuses: "Counter[str]", *, session: requests.Session | None = None) -> None:
    """Sends a request and counts what came."""
    try:
        answer = (session or requests).post(f"{url}/v1/classify", json={"input": "Cholera"}, timeout=LIMIT_S)
        statuses[str(answer.status_code)] += 1
    except requests.RequestException as error:
        statuses[type(error).__name__] += 1


@contextmanager
def clients_that_ask(url: str, statuses: "Counter[str]", *, num_clients: int) -> Iterator[None]:
    """Clients that ask without pause while the block runs."""
    over = threading.Event()

    def client() -> None:
        with requests.Session() as session:
            while not over.is_set():
                ask(url, statuses, session=session)

    with ThreadPoolExecutor(num_clients) as clients:
        asking = [clients.submit(client) for _ in range(num_clients)]
        try:
            yield
        finally:
            over.set()
            for future in asking:
                future.result()


def num_replicas(*states: str) -> int:
    """Replicas in these states, or in any."""
    replicas = serve_client.replicas_of(application.application_name(TASK_URI))
    return sum(not states or replica.state in states for replica in replicas)


def most_running(*, until: Callable[[], bool]) -> int:
    """The most replicas that answered, or were to, at one time."""
    most = 0
    while not until():
        most = max(most, num_replicas("STARTING", "RUNNING"))
        time.sleep(0.2)
    return most


def _seconds_until(holds: Callable[[], bool]) -> float:
    begin = time.monotonic()
    while not holds():
        if time.monotonic() - begin > LIMIT_S:
            raise RuntimeError(f"the replicas did not follow the load in {LIMIT_S} s: {num_replicas('RUNNING')} run")
        time.sleep(0.2)
    return time.monotonic() - begin


if __name__ == "__main__":
    main()
