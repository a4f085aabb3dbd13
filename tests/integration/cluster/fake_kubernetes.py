"""A fake Kubernetes API with one RayCluster, for Ray's autoscaler. The pods are real Ray nodes."""

import copy
import datetime
import ipaddress
import json
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from ray.autoscaler._private.kuberay.utils import parse_quantity

from tests.integration.machines import Machine, Machines, end

HEAD_GROUP, HEAD_POD = "headgroup", "head"
GPU = "nvidia.com/gpu"
POLL_S = 0.2

Manifest = dict[str, Any]


@dataclass
class Pod:
    """A pod with its Ray node."""

    name: str
    group: str
    machine: Machine

    def to_dict(self, cluster: str) -> Manifest:
        kind = "head" if self.group == HEAD_GROUP else "worker"
        labels = {"ray.io/cluster": cluster, "ray.io/node-type": kind, "ray.io/group": self.group}
        state = "running" if self.machine.process.poll() is None else "terminated"
        return {
            "metadata": {"name": self.name, "labels": labels, "resourceVersion": "1"},
            "status": {"containerStatuses": [{"state": {state: {}}}]},
        }


class FakeKubernetes:
    """The operator and the kubelet of one RayCluster. `work` starts and ends pods as the patched
    manifest requires."""

    def __init__(self, manifest: Manifest, *, machines: Machines) -> None:
        self.manifest = copy.deepcopy(manifest)
        self.pods: dict[str, Pod] = {}
        self.history: list[tuple[float, str, int]] = []
        """Changes of the number of pods: monotonic time, group, new number."""
        self._machines = machines
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        head = machines.head(
            HEAD_POD, "--no-monitor", **self._pod_environment(HEAD_POD, HEAD_GROUP)
        )
        self.pods[HEAD_POD] = Pod(HEAD_POD, HEAD_GROUP, head)

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.manifest["metadata"]["namespace"])

    def work(self, over: threading.Event) -> None:
        """Start and end pods until `over` is set. Run it in a lasting thread, because nodes end
        with their thread."""
        while not over.wait(POLL_S):
            for group in self.manifest["spec"]["workerGroupSpecs"]:
                with self._lock:
                    to_delete = set(group.get("scaleStrategy", {}).get("workersToDelete", []))
                    wanted = max(group["minReplicas"], min(group["replicas"], group["maxReplicas"]))
                pods = [pod for pod in self.pods.values() if pod.group == group["groupName"]]
                for pod in pods:
                    if pod.name in to_delete:
                        end(pod.machine)
                        del self.pods[pod.name]
                left = self.of(group["groupName"])
                for _ in range(wanted - len(left)):
                    self._start(group)
                if len(self.of(group["groupName"])) != len(pods):
                    self.history.append(
                        (time.monotonic(), group["groupName"], len(self.of(group["groupName"])))
                    )

    def of(self, group: str) -> list[str]:
        """Return the names of a group's pods."""
        return [pod.name for pod in list(self.pods.values()) if pod.group == group]

    def get(self, path: str) -> Manifest | None:
        """Return the object at a path of the API, or None if there is none."""
        core, ray_api = (
            f"/api/v1/namespaces/{self.namespace}",
            f"/apis/ray.io/v1/namespaces/{self.namespace}",
        )
        target = urlsplit(path)
        with self._lock:
            if target.path == f"{ray_api}/rayclusters/{self.name}":
                return copy.deepcopy(self.manifest)
            pods = [pod.to_dict(self.name) for pod in list(self.pods.values())]
        if target.path == f"{core}/pods":
            return {"metadata": {"resourceVersion": "1"}, "items": pods}
        match = re.fullmatch(rf"{core}/pods/(.+)", target.path)
        return next((pod for pod in pods if match and pod["metadata"]["name"] == match[1]), None)

    def patch(self, path: str, changes: list[Manifest]) -> Manifest | None:
        """Apply a JSON patch of `replace` operations to the RayCluster. Return None if the path is
        not its path."""
        if self.get(path) is None or "/rayclusters/" not in path:
            return None
        with self._lock:
            for change in changes:
                assert change["op"] == "replace", change
                *parents, last = change["path"].strip("/").split("/")
                target: Any = self.manifest
                for parent in parents:
                    target = target[int(parent) if isinstance(target, list) else parent]
                target[last] = change["value"]
            return copy.deepcopy(self.manifest)

    def _start(self, group: Manifest) -> None:
        """Start a pod of the group: a Ray node with the resource limits of its container."""
        number = self._numbers.get(group["groupName"], 0)
        self._numbers[group["groupName"]] = number + 1
        name = f"{group['groupName']}-{number}"
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        amounts = {
            "num-cpus": limits["cpu"],
            "memory": limits["memory"],
            "num-gpus": limits.get(GPU, 0),
        }
        amounts |= {
            key: value for key, value in group.get("rayStartParams", {}).items() if key in amounts
        }
        options = [f"--{key}={int(parse_quantity(value))}" for key, value in amounts.items()]
        machine = self._machines.worker(
            name, *options, **self._pod_environment(name, group["groupName"])
        )
        self.pods[name] = Pod(name, group["groupName"], machine)

    def _pod_environment(self, name: str, group: str) -> dict[str, str]:
        """Return the environment variables that KubeRay's operator sets in a container."""
        return {
            "RAY_CLOUD_INSTANCE_ID": name,
            "RAY_NODE_TYPE_NAME": group,
            "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
            "RAY_CLUSTER_NAME": self.name,
        }


@contextmanager
def serving(fake: FakeKubernetes, folder: Path) -> Iterator[dict[str, str]]:
    """Run the fake and its API over TLS, and yield the environment with which the autoscaler
    connects to it."""
    certificate, key = _credentials(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED  # only clients with our certificate may connect
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    over = threading.Event()
    threads = [
        threading.Thread(target=server.serve_forever, daemon=True),
        threading.Thread(target=fake.work, args=(over,), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT_HTTPS": str(server.server_address[1]),
            "RAY_KUBERAY_CLIENT_CERT_PATH": str(certificate),
            "RAY_KUBERAY_CLIENT_KEY_PATH": str(key),
            "RAY_KUBERAY_CA_CERT_PATH": str(certificate),
        }
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        for thread in threads:
            thread.join()


def _handler(fake: FakeKubernetes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(fake.get(self.path))

        def do_PATCH(self) -> None:
            assert self.headers["content-type"] == "application/json-patch+json"
            body = self.rfile.read(int(self.headers["content-length"]))
            self._answer(fake.patch(self.path, json.loads(body)))

        def _answer(self, match: Manifest | None) -> None:
            body = json.dumps(
                match if match is not None else {"kind": "Status", "code": 404}
            ).encode()
            self.send_response(200 if match is not None else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Log nothing, to keep the output of the tests short."""

    return Handler


def _credentials(folder: Path) -> tuple[Path, Path]:
    """Return a self-signed certificate, used by server and client, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fake-kubernetes")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(host, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "kubernetes.crt", folder / "kubernetes.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    return paths
