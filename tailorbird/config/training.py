"""Section `training` of a recipe."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tailorbird.config.base import ConfigSection

DEEPSPEED_FIELDS = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "batch_size and gradient_accumulation_steps",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer": "offload",
    "zero_optimization.offload_param": "offload",
    "zero_optimization.zero_hpz_partition_size": "zero_hpz_partition_size",
    "bf16": "parameter_dtype",
    "bfloat16": "parameter_dtype",
    "fp16": "parameter_dtype",
    "optimizer": "learning_rate and weight_decay",
    "scheduler": "learning_rate",
    "torch_autocast": "parameter_dtype",
    "amp": "parameter_dtype",
}
"""DeepSpeed options that cannot be set directly, with the fields of the training section that set
them."""


class WorkerRange(ConfigSection):
    min: int = Field(ge=1)
    """Minimum number of workers with which training starts or resumes."""
    max: int = Field(ge=1)
    """Maximum number of workers, used if the cluster has room for them."""
    workers_per_node: int = Field(default=1, ge=1)
    """Number of workers of a whole node, of which the number of workers is a multiple. Set it to
    the GPUs of a node to grow by whole nodes."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max {self.max} must be at least min {self.min}")
        for name, value in (("min", self.min), ("max", self.max)):
            if value % self.workers_per_node:
                raise ValueError(
                    f"{name} {value} must be a multiple of workers_per_node {self.workers_per_node}"
                )
        return self


def _kind_of_workers(value: Any) -> str:
    if isinstance(value, dict | WorkerRange):
        return "range"
    return "number"


PROCESS_GROUP_TIMEOUT_S = 7200
"""Number of seconds for which workers wait for one that works alone, for example while it uploads
the weights. Only a worker that hangs is noticed after this time, a lost one at once."""
ClassWeights = Literal["equal", "square-root", "balanced"]

NumWorkers = Annotated[
    Annotated[int, Field(ge=1), Tag("number")] | Annotated[WorkerRange, Tag("range")],
    Discriminator(_kind_of_workers),
]


class TrainingConfig(ConfigSection):
    method: Literal["lora", "full"] = "full"
    """`full` trains all weights; `lora` trains low-rank adapters and, for classification, the head.
    Use `lora` if the model does not fit in memory with its gradients and optimizer states."""
    pooling: Literal["own", "mean"] = "own"
    """(classification only) Vector for the head, without normalization: `own` as the base model
    declares in `modules.json`, or the `mean` of the tokens. The model's prompt stays."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: workers share the optimizer states from 1, the gradients from 2 and the
    parameters from 3. Higher stages use less memory and communicate more."""
    num_workers: NumWorkers = 2
    """Number of Ray Train workers, one process each. With `{min, max}`, training starts with as
    many as fit, and resumes with another number when nodes join or leave."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """Number of CPU cores, and of torch threads, per worker."""
    gpus_per_worker: Literal[0, 1] = 0
    """Number of GPUs per worker. 0 trains on CPUs with gloo, 1 on GPUs with NCCL."""
    num_seeds: int = Field(default=3, ge=1)
    """Number of times that the selected configuration is trained, each with its own seed; the trial
    of the sweep is the first."""
    with_retrieved: bool = False
    """(chat only) Put retrieved examples into the prompt in training, evaluation and serving, as
    many as are best for the baseline `retrieved` on validation."""
    seed: int = Field(default=0, ge=0)
    """Seed of the trials. The seed runs use the integers that follow."""
    epochs: int = Field(default=3, ge=1)
    """Number of passes over the training rows."""
    batch_size: int = Field(default=32, ge=1)
    """Number of rows per optimizer step, over all workers, whatever their number. It must be at
    least the number of workers times `gradient_accumulation_steps`."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Number of micro-batches into which each of `num_workers.max` workers splits its rows of a
    step, to use less memory. Fewer workers have proportionally more."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of a micro-batch, counted as rows times the longest row, instead of
    `gradient_accumulation_steps`. It is halved when a GPU runs out of memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them, which uses less memory
    and more time."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """State in CPU memory instead of GPU memory: `optimizer` states and their gradients (ZeRO
    stages 1 to 3), or also `parameters` (stage 3), which is faster at stage 3."""
    parameter_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the parameters: `fp32`, which computes in bf16 by autocast, or `bf16`, which
    halves their memory and keeps fp32 master weights in the optimizer."""
    torch_compile: bool = False
    """Compile the transformer layers with `torch.compile`. Compilation takes minutes, and then
    steps are faster. It requires ZeRO stages 0 to 2 and, on CPUs, a C++ compiler."""
    zero_hpz_partition_size: int = Field(default=1, ge=1)
    """(ZeRO stage 3) Number of neighbouring workers that share a second copy of the parameters for
    the backward pass; set it to the GPUs per node."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Further options of DeepSpeed's configuration file. Options that a field of this section sets
    are not allowed."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of the base model's weights. LoRA adapters use 5 times and the head 10
    times this rate."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is distributed evenly over all classes or, for chat
    tasks, over all tokens of the vocabulary."""
    class_weights: ClassWeights = "equal"
    """(classification only) Weight of a training row by the size n of its class: `balanced` is in
    proportion to 1 / n, `square-root` to 1 / sqrt(n)."""
    attention_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout probability in the attention. By default, the base model's value. On CPUs, 0 enables
    torch's fused attention, which makes steps of 320 tokens three times as fast."""
    attention: Literal["auto", "flash", "dense"] = "auto"
    """(chat only) Attention of packed conversations: `flash` is variable-length flash attention on
    GPUs, `dense` masks all pairs, and `auto` takes `flash` if it is supported."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW. It applies to matrices of the base model or the adapters, not to
    vectors or the head."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the LoRA adapters, whose output is multiplied by 2. Raise it if LoRA underfits."""
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout probability before the LoRA matrices."""
    checkpoint_interval_s: float = Field(default=600.0, ge=0)
    """Number of seconds between checkpoints within an epoch. Sweeps skip the checkpoint at the end
    of an epoch after one that is younger than this or 120 s."""
    max_failures: int = Field(default=2, ge=0)
    """Maximum number of failures of workers, nodes or S3, and separately of preemptions, after
    which training resumes. In a sweep, a finished trial resets the count."""
    start_timeout_s: float | None = Field(default=None, gt=0)
    """Number of seconds that a training waits for its workers, three times. By default 600, or 120
    if `num_workers` is a range. Raise it for nodes that start slowly."""

    @model_validator(mode="after")
    def _every_micro_batch_has_rows(self) -> Self:
        least = self.max_workers * self.gradient_accumulation_steps
        if self.batch_size < least:
            divisor = f"num_workers {self.max_workers}"
            if self.gradient_accumulation_steps > 1:
                divisor += f" times gradient_accumulation_steps {self.gradient_accumulation_steps}"
            raise ValueError(f"batch_size {self.batch_size} must be at least {divisor}")
        return self

    @property
    def min_workers(self) -> int:
        if isinstance(self.num_workers, int):
            return self.num_workers
        return self.num_workers.min

    @property
    def max_workers(self) -> int:
        if isinstance(self.num_workers, int):
            return self.num_workers
        return self.num_workers.max

    @property
    def workers_per_node(self) -> int:
        """Number of workers that a node runs, of which the number of workers is a multiple; 1
        without a range."""
        if isinstance(self.num_workers, int):
            return 1
        return self.num_workers.workers_per_node

    def accumulation_steps(self, num_workers: int) -> int:
        """Return the number of micro-batches of each of `num_workers` workers in a step; 1 with
        `batch_tokens`."""
        if self.batch_tokens is not None:
            return 1
        return -(-self.gradient_accumulation_steps * self.max_workers // num_workers)

    def micro_batch_size(self, num_workers: int) -> int:
        """Return the maximum number of rows of a micro-batch with `num_workers` workers."""
        return -(-self.batch_size // (num_workers * self.accumulation_steps(num_workers)))

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> Self:
        least = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"offload {self.offload!r} requires zero_stage {least} or higher, not "
                f"{self.zero_stage}"
            )
        return self

    @model_validator(mode="after")
    def _one_rule_for_micro_batches(self) -> Self:
        if self.batch_tokens is not None and self.gradient_accumulation_steps > 1:
            raise ValueError(
                "batch_tokens and gradient_accumulation_steps both split the rows of a step; "
                "remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _attention_fits_the_device(self) -> Self:
        if self.attention == "flash" and self.gpus_per_worker == 0:
            raise ValueError(
                "attention 'flash' requires gpus_per_worker 1; use 'auto' to train on CPUs"
            )
        return self

    @model_validator(mode="after")
    def _options_fit_the_stage_and_workers(self) -> Self:
        size = self.zero_hpz_partition_size
        if size > 1 and self.zero_stage != 3:
            raise ValueError(
                f"zero_hpz_partition_size {size} requires zero_stage 3, not {self.zero_stage}"
            )
        for num_workers in range(self.min_workers, self.max_workers + 1, self.workers_per_node):
            if num_workers % size:
                raise ValueError(
                    f"num_workers {num_workers} must be a multiple of zero_hpz_partition_size "
                    f"{size}; set it to the number of GPUs per node, and num_workers to a multiple "
                    "of it"
                )
        if self.torch_compile and self.zero_stage == 3:
            raise ValueError(
                "torch_compile requires zero_stage 0, 1 or 2, because stage 3 gathers parameters "
                "in hooks"
            )
        return self

    @field_validator("deepspeed")
    @classmethod
    def _no_option_with_a_field(cls, options: dict[str, Any]) -> dict[str, Any]:
        for path, name in DEEPSPEED_FIELDS.items():
            value: Any = options
            for part in path.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                raise ValueError(f"{path} cannot be set here; set training.{name}")
        zero = options.get("zero_optimization")
        if isinstance(zero, dict) and zero.get("round_robin_gradients"):
            # DeepSpeed 0.19 then gives the fp32 values of other parameters, so weights could not be
            # exported.
            raise ValueError("zero_optimization.round_robin_gradients is not supported; remove it")
        return options
