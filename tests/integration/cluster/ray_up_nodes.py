"""Start two nodes as `ray up` does, each in its own Linux namespaces, and send requests to the
HAProxy of each.

    unshare SEPARATE python -m tests.integration.cluster.ray_up_nodes

The process must be in new user, network, mount and PID namespaces (`SEPARATE`). It then needs no
rights outside of them, and all processes of the nodes end with it. A node has its own network,
process ids, home folder and shared memory. It runs the commands of `cluster/ray_up/onprem.yaml`,
except the installation of packages and the autoscaler. The last line of the output is the result as
JSON.
"""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml

ROOT = Path(__file__).parents[3]
CONFIGURATION = ROOT / "cluster" / "ray_up" / "onprem.yaml"
NEW = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
SEPARATE = ("--user", "--map-root-user", *NEW)
"""Arguments of `unshare` for this program and, without the user's namespace, for each node."""
ADDRESSES = {"head": "10.77.0.1", "worker": "10.77.0.2"}
GATEWAY = "10.77.0.254"
SERVE_PORT, STATS_PORT = 8000, 8404
NUM_REQUESTS = 20
LIMIT_S, POLL_S, REQUEST_S = 540, 1.0, 30
DEPLOYED = "python -m tests.integration.cluster.ray_up_application"

PATIENT = {
    "RAY_worker_niceness": "0",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "120",
    "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "120",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "120",
}
"""Limits for a loaded machine, on which Serve would replace proxies during their start: it waits
three times 5 s."""

Stats = dict[str, tuple[str, int]]
"""Status and number of requests of each server of the application, by its name in HAProxy."""


class Node:
    """A node: a shell in its own namespaces, which reads commands from this process."""

    def __init__(self, name: str, *, folder: Path) -> None:
        self.name, self.address = name, ADDRESSES[name]
        self._home, self._disk = folder / "home", folder / name
        self.log = folder / f"{name}.log"
        self._disk.mkdir()
        self._process = subprocess.Popen(
            ["unshare", *NEW, "bash", "--norc"],
            env={"HOME": str(self._home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.run("true")  # its namespaces exist
        run(
            "ip",
            "link",
            "add",
            name,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(self._process.pid),
        )
        run("ip", "link", "set", name, "master", "bridge", "up")
        self.run("ip link set lo up && ip link set eth0 up")
        self.run(f"ip address add {self.address}/24 dev eth0 && ip route add default via {GATEWAY}")
        self.run(f"mount --bind {self._disk} {self._home} && mount -t tmpfs tmpfs /dev/shm")
        # Without a name server, a look-up fails at once; that of this machine cannot be reached and
        # would take 20 s.
        self.run("mount --bind /dev/null /etc/resolv.conf")

    def run(self, command: str) -> None:
        """Run a command in the node's shell; raise RuntimeError with the end of the log if it
        fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"( {command}\n) </dev/null >>{self.log} 2>&1; echo $?\n")
        self._process.stdin.flush()
        status = self._process.stdout.readline().strip()
        if status != "0":
            raise RuntimeError(
                f"{self.name}: {command}: status {status}: {self.log.read_text()[-3000:]}"
            )

    def start_ray(self, *, token: str, environment: Mapping[str, str]) -> None:
        """Prepare the node and start Ray with the commands for `ray up`."""
        self.run(f"mkdir ~/.ray && echo {token} >~/.ray/auth_token")
        self.run(f"ln -s '{ROOT}' ~/tailorbird && ln -s '{sys.prefix}' ~/tailorbird-venv")
        content = yaml.safe_load(CONFIGURATION.read_text())
        for command in content["setup_commands"]:
            if "venv" not in command:
                self.run(command)
        (start,) = (
            line for line in content[f"{self.name}_start_ray_commands"] if "ray start" in line
        )
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        self.run(
            f"export {exports}; "
            f"{start.replace('--autoscaling-config=~/ray_bootstrap_config.yaml', '')}"
        )

    def stop(self) -> None:
        """End all processes of the node, which end with its shell."""
        self._process.kill()
        self._process.wait()

    def stats(self) -> Stats:
        """Return the servers of the application in the node's HAProxy, or none while it does not
        answer."""
        try:
            with urlopen(
                f"http://{self.address}:{STATS_PORT}/stats;csv", timeout=REQUEST_S
            ) as answer:
                rows = csv.DictReader(answer.read().decode().removeprefix("# ").splitlines())
        except (URLError, OSError):
            return {}
        servers = (
            row for row in rows if row["pxname"].startswith("http-") and "SERVE" in row["svname"]
        )
        return {row["svname"]: (row["status"], int(row["stot"])) for row in servers}


def run(*command: str) -> None:
    """Run a command in this process' namespaces."""
    subprocess.run(command, check=True)


def connected() -> None:
    """Create the network of the nodes: a bridge, which is also their gateway. It leads nowhere
    else."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "bridge", "type", "bridge")
    run("ip", "address", "add", f"{GATEWAY}/24", "dev", "bridge")
    run("ip", "link", "set", "bridge", "up")


def await_that(condition: Callable[[], bool]) -> None:
    """Wait for a condition; `LIMIT_S` limits the time of the whole program."""
    while not condition():
        time.sleep(POLL_S)


def all_up(nodes: list[Node]) -> bool:
    """Return True if the HAProxy of each node reaches two replicas and the fallback proxy."""
    states = [node.stats() for node in nodes]
    print([sorted(status for status, _ in stats.values()) for stats in states], file=sys.stderr)
    return all(
        len(stats) == 3 and {status for status, _ in stats.values()} == {"UP"} for stats in states
    )


def measured(node: Node) -> dict[str, Any]:
    """Send requests to a node's HAProxy. Return the answers, and the number of requests of each
    server in HAProxy."""
    before = node.stats()
    answers: Counter[str] = Counter()
    for _ in range(NUM_REQUESTS):
        with urlopen(f"http://{node.address}:{SERVE_PORT}/address", timeout=REQUEST_S) as answer:
            answers[answer.read().decode()] += 1
    requests = {name: number - before[name][1] for name, (_, number) in node.stats().items()}
    fallback = sum(number for name, number in requests.items() if "fallback" in name)
    return {"answers": answers, "replicas": sum(requests.values()) - fallback, "fallback": fallback}


def too_long(*_: Any) -> None:
    raise TimeoutError(f"the nodes have not answered after {LIMIT_S} s")


def main() -> None:
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT_S)
    # The paths of HAProxy's sockets are limited to 97 bytes, so the path of the home folder is
    # short.
    with tempfile.TemporaryDirectory(prefix="tb-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "home").mkdir()
        connected()
        nodes = [Node(name, folder=folder) for name in ADDRESSES]
        head = nodes[0]
        token = os.urandom(32).hex()
        try:
            for node in nodes:
                node.start_ray(token=token, environment=PATIENT | {"RAY_HEAD_IP": head.address})
            head.run(f". ~/tailorbird/cluster/ray_up/node.env && {DEPLOYED}")
            await_that(lambda: all_up(nodes))
            print(json.dumps({node.name: measured(node) for node in nodes}), flush=True)
        except Exception:
            print_logs(folder)
            raise
        finally:
            for node in nodes:
                node.stop()


def print_logs(folder: Path) -> None:
    """Print the logs of the nodes and the ends of those of Serve."""
    for path in (*folder.glob("*.log"), *folder.glob("*/.tb/ray/session_2*/logs/serve/*.log")):
        print(f"--- {path}\n{path.read_text()[-4000:]}", file=sys.stderr)


if __name__ == "__main__":
    main()
