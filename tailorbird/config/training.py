"""Section `training` of a recipe."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tailorbird.config.base import ConfigSection

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
"""Options of DeepSpeed that a field of the training section sets."""


class WorkerRange(ConfigSection):
    min: int = Field(ge=1)
    """Minimum workers to start or resume with."""
    max: int = Field(ge=1)
    """Maximum workers, if the cluster has room."""

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


class TrainingConfig(ConfigSection):
    method: Literal["lora", "full"] = "full"
    """What is trained: adapters and head, or every weight."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: 0 none, 1 optimizer states, 2 and gradients, 3 and parameters are sharded."""
    num_workers: NumWorkers = 2
    """Ray Train workers, one process each; `{min, max}` uses what the cluster has, and resumes from the last checkpoint
    when that changes."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores, and torch threads, of a worker."""
    gpus_per_worker: Literal[0, 1] = 0
    """GPUs of a worker: 0 trains on CPU with gloo, 1 on GPU with NCCL."""
    num_seeds: int = Field(default=3, ge=1)
    """Number of seeds of the selected configuration; its trial counts as one."""
    average_seeds: bool = True
    """With `method: full`, the mean of all seeds' weights is a candidate too, at the cost of one in serving."""
    seed: int = Field(default=0, ge=0)
    """First seed; the others follow it."""
    epochs: int = Field(default=3, ge=1)
    """Passes over the training rows."""
    batch_size: int = Field(default=32, ge=1)
    """Rows per step, over all workers."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches into which a worker splits its rows of a step, for less memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more time."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """State offloaded to CPU memory: optimizer states (stages 1 to 3), or parameters too (stage 3)."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Options of DeepSpeed's configuration that no field of this section sets."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of the encoder or adapter."""
    head_multiplier: float = Field(default=10.0, gt=0)
    """Factor of `learning_rate` for the head."""
    lora_multiplier: float = Field(default=5.0, gt=0)
    """Factor of `learning_rate` for LoRA's matrices, so that one range suits both methods."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each label's weight that is spread over all classes."""
    attention_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout in the attention; by default the model's own. On CPU, 0 lets torch use its fused attention: steps of 320
    tokens are three times as fast."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's weight decay, of matrices only."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Maximum norm of the gradient; 0 disables clipping."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly from 0, before it falls linearly to 0."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the LoRA adapter."""
    lora_alpha: int = Field(default=32, ge=1)
    """LoRA's scaling numerator (the update is multiplied by `lora_alpha / lora_r`)."""
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout before the LoRA matrices."""
    checkpoint_interval_s: float = Field(default=600.0, ge=0)
    """Seconds within an epoch after which a checkpoint is written. One is also written before a chat's validation and
    at the end of an epoch; in a sweep only if 120 seconds, or this, have passed since the last."""
    max_failures: int = Field(default=2, ge=0)
    """Maximum failures of workers, nodes or S3, and preemptions, after which training resumes from a checkpoint."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        for num_workers in range(self.min_workers, self.max_workers + 1):
            divisor = f"num_workers {num_workers}"
            if self.gradient_accumulation_steps > 1:
                divisor += f" times gradient_accumulation_steps {self.gradient_accumulation_steps}"
            if self.batch_size % (num_workers * self.gradient_accumulation_steps):
                raise ValueError(f"batch_size {self.batch_size} must be a multiple of {divisor}")
        return self

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.min

    @property
    def max_workers(self) -> int:
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
            value: Any = options
            for part in path.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                raise ValueError(f"{path} is set by training.{name}; change it there")
        return options
