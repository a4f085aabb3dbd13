"""How the hidden states of an encoder become one embedding, and the prompt before each text."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PoolingMode = Literal["mean", "cls", "lasttoken", "weightedmean", "max", "mean_sqrt_len_tokens"]
"""The names of sentence-transformers: mean of the tokens, first token, last token, mean weighted by
the position of the token (from 1), maximum of each value, and sum divided by the square root of the
number of tokens."""


class Pooling(BaseModel):
    """The pooling of an encoder. The default is the mean of the tokens, without a prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: PoolingMode = "mean"
    normalize: bool = False
    """Scale the embedding to length 1."""
    prompt: str = ""
    """Text before each text, in training, evaluation and serving."""
    num_skipped: int = Field(default=0, ge=0)
    """Number of first tokens that are not pooled: those of the prompt, for a model that excludes
    it."""

    def trained(self, choice: Literal["own", "mean"]) -> "Pooling":
        """Return the pooling of a model that is trained from this encoder.

        The prompt is the same. The embedding is not normalized: on vectors of length 1, the logits
        of a head would grow several times more slowly with the same learning rate.
        """
        mode = self.mode if choice == "own" else "mean"
        return self.model_copy(update={"mode": mode, "normalize": False})


MEAN = Pooling()
