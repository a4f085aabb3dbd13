"""Time in which the number of replicas follows the load: from zero to the maximum, and back to
zero.

    python -m benchmarks.serving.autoscaling

One application runs with `min_replicas: 0`, `max_replicas: 3`, `target_ongoing_requests: 4`,
`downscale_to_zero_delay_s: 10` and otherwise the defaults of a recipe. Its separate stack declares
a CPU for each replica, even if the machine has fewer. The load has five phases:

1. no requests, until there is no replica;
2. a burst of 24 requests, which waits for the cold start and must not start more than one replica;
3. 12 clients that send requests without a pause, until there are three replicas;
4. one client, until there is one replica;
5. no requests, until there is no replica.

A figure is the time from a change of the load to the change of the replicas. A replica counts until
it has stopped, since it answers requests while it stops. Every request must be answered with 200.
The benchmark stops the stack at the end.
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
CONFIG = ServingConfig(
    min_replicas=0, max_replicas=3, target_ongoing_requests=4, downscale_to_zero_delay_s=10
)
BURST, MANY, WATCH_S, LIMIT_S = 24, 12, 15, 180
BOUNDS = {"failed": "<= 0", "most_after_cold_start": "<= 1"}


def main() -> None:
    """Print the table, then one line of JSON."""
    num_cpus = CONFIG.max_replicas + 1
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary,
        own_stack(Path(temporary), num_cpus),
    ):
        version = random_version(Path(temporary) / "version", task_uri=TASK_URI)
        figures, statuses = measure(rollout.deploy(CONFIG, task_uri=TASK_URI, version=version))
    print(f"answers: {dict(statuses)}")
    print_table("Seconds until the replicas follow the load", {"autoscaling": figures})
    finish("autoscaling", figures, bounds=BOUNDS)


def measure(url: str) -> tuple[dict[str, float], Counter[str]]:
    """Return the seconds from each change of the load to the change of the replicas, and the number
    of each status."""
    statuses: Counter[str] = Counter()
    figures = {"idle_to_zero_s": _seconds_until(lambda: num_replicas() == 0)}
    begin = time.monotonic()
    with ThreadPoolExecutor(BURST) as clients:
        burst = [clients.submit(send_request, url, statuses) for _ in range(BURST)]
        most = most_running(until=lambda: all(client.done() for client in burst))
        figures["cold_start_s"] = time.monotonic() - begin
    end = time.monotonic() + WATCH_S
    with sending_clients(
        url, statuses, num_clients=1
    ):  # without requests, the replica could stop while it is counted
        figures["most_after_cold_start"] = max(
            most, most_running(until=lambda: time.monotonic() > end)
        )
    with sending_clients(url, statuses, num_clients=MANY):
        figures["one_to_three_s"] = _seconds_until(
            lambda: num_replicas("RUNNING") == CONFIG.max_replicas
        )
        time.sleep(5)  # let all replicas answer requests
    with sending_clients(url, statuses, num_clients=1):
        figures["three_to_one_s"] = _seconds_until(lambda: num_replicas("RUNNING") == 1)
    figures["one_to_zero_s"] = _seconds_until(lambda: num_replicas() == 0)
    return figures | {"failed": statuses.total() - statuses["200"]}, statuses


def send_request(
    url: str, statuses: "Counter[str]", *, session: requests.Session | None = None
) -> None:
    """Send a request, and count its status or exception."""
    try:
        answer = (session or requests).post(
            f"{url}/v1/classify", json={"input": "Cholera"}, timeout=LIMIT_S
        )
        statuses[str(answer.status_code)] += 1
    except requests.RequestException as error:
        statuses[type(error).__name__] += 1


@contextmanager
def sending_clients(url: str, statuses: "Counter[str]", *, num_clients: int) -> Iterator[None]:
    """Run clients that send requests without a pause while the block runs."""
    over = threading.Event()

    def client() -> None:
        with requests.Session() as session:
            while not over.is_set():
                send_request(url, statuses, session=session)

    with ThreadPoolExecutor(num_clients) as clients:
        futures = [clients.submit(client) for _ in range(num_clients)]
        try:
            yield
        finally:
            over.set()
            for future in futures:
                future.result()


def num_replicas(*states: str) -> int:
    """Return the number of replicas in these states, or in any state if none is given."""
    replicas = serve_client.replicas_of(application.application_name(TASK_URI))
    return sum(not states or replica.state in states for replica in replicas)


def most_running(*, until: Callable[[], bool]) -> int:
    """Return the largest number of starting and running replicas at one time."""
    most = 0
    while not until():
        most = max(most, num_replicas("STARTING", "RUNNING"))
        time.sleep(0.2)
    return most


def _seconds_until(holds: Callable[[], bool]) -> float:
    begin = time.monotonic()
    while not holds():
        if time.monotonic() - begin > LIMIT_S:
            raise RuntimeError(
                f"the replicas did not follow the load in {LIMIT_S} s: {num_replicas('RUNNING')} "
                "run"
            )
        time.sleep(0.2)
    return time.monotonic() - begin


if __name__ == "__main__":
    main()
