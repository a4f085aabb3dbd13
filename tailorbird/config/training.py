"""Section `training` of a recipe."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from tailorbird.config.base import ConfigSection

DEEPSPEED_FIELDS = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "batch_size and batch_tokens",
    "gradient_accumulation_steps": "batch_tokens",
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer": "offload",
    "zero_optimization.offload_param": "offload",
    "bf16": "parameter_dtype",
    "bfloat16": "parameter_dtype",
    "fp16": "parameter_dtype",
    "optimizer": "learning_rate",
    "scheduler": "learning_rate",
    "torch_autocast": "parameter_dtype",
    "amp": "parameter_dtype",
}
"""DeepSpeed options that cannot be set directly, with the fields of the training section that set
them."""


PROCESS_GROUP_TIMEOUT_S = 7200
"""Number of seconds for which workers wait for one that works alone, for example while it uploads
the weights. Only a worker that hangs is noticed after this time, a lost one at once."""
ClassWeights = Literal["equal", "square-root", "balanced"]


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
    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 2
    """Number of Ray Train workers, one process each. With `[min, max]`, training starts with as
    many as fit, and resumes with another number when nodes join or leave."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """Number of CPU cores, and of torch threads, per worker."""
    gpus_per_worker: Literal[0, 1] = 0
    """Number of GPUs per worker. 0 trains on CPUs with gloo, 1 on GPUs with NCCL."""
    num_seeds: int = Field(default=3, ge=1)
    """Number of times that the selected configuration is trained, each with its own seed; the trial
    of the sweep is the first."""
    seed: int = Field(default=0, ge=0)
    """Seed of the trials. The seed runs use the integers that follow."""
    epochs: int = Field(default=3, ge=1)
    """Number of passes over the training rows."""
    batch_size: int = Field(default=32, ge=1)
    """Number of rows per optimizer step, over all workers, whatever their number. It must be at
    least the number of workers."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of a micro-batch, counted as rows times the longest row, to use less
    memory. It is halved when a GPU runs out of memory."""
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

    @model_validator(mode="after")
    def _every_micro_batch_has_rows(self) -> Self:
        if self.max_workers < self.min_workers:
            raise ValueError(
                f"num_workers [{self.min_workers}, {self.max_workers}] must be [min, max]"
            )
        if self.batch_size < self.max_workers:
            raise ValueError(
                f"batch_size {self.batch_size} must be at least num_workers {self.max_workers}"
            )
        return self

    @property
    def min_workers(self) -> int:
        if isinstance(self.num_workers, int):
            return self.num_workers
        return self.num_workers[0]

    @property
    def max_workers(self) -> int:
        if isinstance(self.num_workers, int):
            return self.num_workers
        return self.num_workers[1]

    def accumulation_steps(self, num_workers: int) -> int:
        """Return the number of micro-batches of each of `num_workers` workers in a step, more if
        there are fewer workers than the maximum; 1 with `batch_tokens`."""
        if self.batch_tokens is not None:
            return 1
        return -(-self.max_workers // num_workers)

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
    def _compilation_fits_the_stage(self) -> Self:
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
