"""Layout of the registry: URIs of everything that is stored for a task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskPaths:
    """URIs of a task's files. `task_uri` is `<registry>/<name>`, without a trailing slash."""

    task_uri: str

    @property
    def name(self) -> str:
        """The task's name, the last segment of its URI."""
        return self.task_uri.rpartition("/")[2]

    @property
    def registry(self) -> str:
        """URI of the registry that holds the task."""
        return self.task_uri.rpartition("/")[0]

    @property
    def runs(self) -> str:
        return f"{self.task_uri}/runs"

    def run(self, name: str) -> str:
        """Folder of a run's evidence and predictions."""
        return f"{self.runs}/{name}"

    @property
    def all_progress(self) -> str:
        return f"{self.task_uri}/progress"

    def progress(self, run: str) -> str:
        """The progress of a run, which the driver writes while it is under way."""
        return f"{self.all_progress}/{run}.json"

    @property
    def versions(self) -> str:
        return f"{self.task_uri}/versions"

    def version(self, name: str) -> str:
        """Folder of a model version's weights, config.json and manifest.json."""
        return f"{self.versions}/{name}"

    def stage(self, name: str, fingerprint: str) -> str:
        """Folder with the output of a stage; `fingerprint` is the hash of its inputs."""
        return f"{self.task_uri}/stages/{name}-{fingerprint}"

    def endpoint_answers(self, endpoint: str) -> str:
        """Folder of the answers of an external endpoint; `endpoint` is the hash of its URL and
        model."""
        return f"{self.task_uri}/endpoint_answers/{endpoint}"

    def code_archive(self, sha256: str) -> str:
        """The zip of the project's code with this sha256."""
        return f"{self.task_uri}/code/{sha256}.zip"

    @property
    def champion(self) -> str:
        """The file that names the champion."""
        return f"{self.task_uri}/champion.json"

    @property
    def history(self) -> str:
        return f"{self.task_uri}/history"

    def history_entry(self, name: str) -> str:
        """The record of a change of the champion, or of a re-evaluation."""
        return f"{self.history}/{name}.json"

    @property
    def test_set_ledger(self) -> str:
        """The task's accesses to test rows, in the test-set ledger of the registry."""
        return f"{self.registry}/_ledger/accesses/{self.name}.json"

    @property
    def test_set_order(self) -> str:
        """The order of the accesses of all tasks of the registry, in the test-set ledger."""
        return f"{self.registry}/_ledger/order"

    def test_rows(self, test_set: str) -> str:
        """The hashes of the rows of a test set, in the test-set ledger of the registry."""
        return f"{self.registry}/_ledger/rows/{test_set}"

    @property
    def draw_secret(self) -> str:
        """The secret of the draws that clients must not predict: audits and samples."""
        return f"{self.task_uri}/draw_secret.json"

    @property
    def audits(self) -> str:
        return f"{self.task_uri}/audits"

    def audit(self, number: int, digest: str) -> str:
        """Labelled rows of the `number`-th audit import."""
        return f"{self.audits}/{number:06d}-{digest}.parquet"

    @property
    def monitoring(self) -> str:
        return f"{self.task_uri}/monitoring"

    def daily_report(self, day: str) -> str:
        """The monitoring report of a day (`YYYY-MM-DD`)."""
        return f"{self.monitoring}/{day}.json"

    @property
    def monitoring_page(self) -> str:
        return f"{self.monitoring}/monitoring.html"

    @property
    def metrics(self) -> str:
        """The gauges of monitoring in Prometheus text format."""
        return f"{self.monitoring}/metrics.prom"

    @property
    def watch(self) -> str:
        """The recommendation of the last watch."""
        return f"{self.task_uri}/watch.json"

    @property
    def reevaluations(self) -> str:
        return f"{self.task_uri}/reevaluations"

    def reevaluation(self, name: str) -> str:
        """Folder with the evidence of a re-evaluation."""
        return f"{self.reevaluations}/{name}"

    def drift_reference(self, digest: str) -> str:
        """The answers of a version to validation rows, with which its traffic is compared to detect
        drift."""
        return f"{self.task_uri}/references/{digest}.parquet"

    def preflight_probe(self, name: str) -> str:
        """A file that preflight writes, changes and deletes to test the storage."""
        return f"{self.task_uri}/preflight/{name}"


def base_model(registry: str, name: str) -> str:
    """Return the folder of a base model that is staged in a registry."""
    return f"{registry.rstrip('/')}/_base/{name}"


def base_model_pin(registry: str, name: str) -> str:
    """Return the file that records the folder under which a base model is staged."""
    return base_model(registry, f"pinned/{name}.json")


def is_staged_base_model(uri: str) -> bool:
    """Return True if `uri` is the folder of a staged base model."""
    return uri.rstrip("/").rsplit("/", 2)[1:2] == ["_base"]


def is_version_uri(uri: str) -> bool:
    """Return True if `uri` is the folder of a registered version."""
    return uri.rstrip("/").rsplit("/", 2)[1:2] == ["versions"]


def task_of_artifact(uri: str) -> TaskPaths:
    """Return the task of an artifact or version; raise ValueError if `uri` is neither."""
    for segment in ("/versions/", "/stages/"):
        task_uri, separator, _ = uri.rpartition(segment)
        if separator:
            return TaskPaths(task_uri)
    raise ValueError(f"{uri!r} is neither a version nor an artifact of a task")


def parse_version_uri(uri: str) -> tuple[TaskPaths, str]:
    """Return the task and name of a version; raise ValueError if `uri` is not
    `<registry>/<task>/versions/<name>`."""
    return _parse(uri, "versions")


def parse_run_uri(uri: str) -> tuple[TaskPaths, str]:
    """Return the task and name of a run; raise ValueError if `uri` is not
    `<registry>/<task>/runs/<name>`."""
    return _parse(uri, "runs")


def _parse(uri: str, folder: str) -> tuple[TaskPaths, str]:
    match uri.rstrip("/").rsplit("/", 2):
        case [task_uri, segment, name] if segment == folder:
            return TaskPaths(task_uri), name
    raise ValueError(f"{uri!r} is not in a {folder} folder; give <registry>/<task>/{folder}/<name>")
