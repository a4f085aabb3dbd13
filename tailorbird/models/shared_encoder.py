"""A pretrained encoder that several versions share. Each version has its own head, and a LoRA
adapter or none."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tailorbird.data.tokenize import load_tokenizer
from tailorbird.models.classifier import Classifier
from tailorbird.models.loading import LoadedClassifier, load_head, weight_errors
from tailorbird.models.lora import require_adapter, require_whole_adapter
from tailorbird.models.pretrained import default_device, load_encoder
from tailorbird.registry.pooling import Pooling
from tailorbird.registry.versions import ModelVersion
from tailorbird.storage.node_cache import local_copy

if TYPE_CHECKING:
    from tailorbird.models.bag_of_words import BagOfWords

NO_ADAPTER = "__base__"  # PEFT's name for rows without an adapter
MIXED = "mixed"  # active adapter of a pass whose rows have different adapters


def adapter_of(loaded: LoadedClassifier[ModelVersion]) -> str:
    """Return the name of a version's adapter in its shared encoder."""
    model = loaded.model
    assert isinstance(model, SharedEncoderClassifier)
    return model.adapter


class SharedEncoder:
    """A pretrained encoder with the adapters of any number of versions.

    Call `add`, `remove` and `hidden_states` from one thread only.
    """

    def __init__(self, base_model: str, *, dtype: str, device: str | None = None) -> None:
        folder = local_copy(base_model)
        self.device = device or default_device()
        self.tokenizer = load_tokenizer(folder)
        encoder = load_encoder(folder, dtype=getattr(torch, dtype)).to(self.device)
        self._encoder = encoder.eval().requires_grad_(False)
        self._adapted: Any = None
        self._active = ""
        self._num_added = 0

    def add(
        self, version: ModelVersion, *, folder: Path, bag: "BagOfWords | None"
    ) -> LoadedClassifier[ModelVersion]:
        """Load the head and the adapter of a version from its local folder.

        `bag` is the version's bag of words. The caller loads it, because that is slow. Raises
        ModelError if a weight is missing or does not fit.
        """
        # The head is in fp32, as in `loading.load_artifact`.
        head = load_head(folder, kind=version.kind).to(self.device).eval().requires_grad_(False)
        name = NO_ADAPTER
        if version.spec.base == "adapter":
            # Each load has a new name, because a version may be loaded again before it is unloaded.
            self._num_added += 1
            name = f"{version.digest}-{self._num_added}"
            self._add_adapter(name, folder / "adapter")
        model = SharedEncoderClassifier(self, adapter=name, head=head, pooling=version.pooling)
        return LoadedClassifier(
            model=model.eval(),
            tokenizer=self.tokenizer,
            classes=version.classes,
            max_length=version.max_length,
            version=version,
            bag=bag,
        )

    def _add_adapter(self, name: str, folder: Path) -> None:
        """Add an adapter. Remove it after an error, because PEFT keeps the layers that it has
        already changed."""
        from peft import PeftConfig, PeftModel

        require_adapter(folder)
        try:
            with weight_errors(folder):
                if self._adapted is None:
                    config = PeftConfig.from_pretrained(folder)
                    config.inference_mode = True
                    self._adapted = PeftModel(
                        self._encoder, config, adapter_name=name, autocast_adapter_dtype=False
                    )
                options = {"torch_device": self.device, "autocast_adapter_dtype": False}
                self._adapted.load_adapter(folder, adapter_name=name, **options)
                self._adapted.eval()
                require_whole_adapter(self._adapted, folder, name=name)
        except Exception:
            self._remove_adapter(name)
            raise
        finally:
            self._active = ""

    def remove(self, loaded: LoadedClassifier[ModelVersion]) -> None:
        """Remove a version's adapter. The version cannot predict afterwards."""
        self._remove_adapter(adapter_of(loaded))

    def _remove_adapter(self, name: str) -> None:
        if self._adapted is None or name not in self._adapted.peft_config:
            return
        self._active = ""
        if len(self._adapted.peft_config) == 1:
            self._encoder = self._adapted.unload()
            self._adapted = None
        else:
            self._adapted.delete_adapter(name)

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        adapters: Sequence[str],
    ) -> torch.Tensor:
        """Return the last hidden states, with an adapter for each row: [B, T], [B, T] -> [B, T, D].

        Raises KeyError for an adapter that is not loaded, because PEFT would ignore it.
        """
        names = set(adapters)
        known = {NO_ADAPTER}
        if self._adapted is not None:
            known.update(self._adapted.peft_config)
        if missing := sorted(names - known):
            raise KeyError(f"adapter {missing[0]} is not loaded")
        rows = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._adapted is None:
            output = self._encoder(**rows)
        elif len(names) > 1:
            self._activate(MIXED)
            output = self._adapted(**rows, adapter_names=list(adapters))
        else:  # PEFT's code for mixed rows copies the input of each layer, so it is not used here
            self._activate(*names)
            output = self._adapted.base_model.model(**rows)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _activate(self, name: str) -> None:
        """Activate an adapter, or none. If it is active, do nothing, because PEFT visits all
        layers."""
        if self._active == name:
            return
        if name == NO_ADAPTER:
            self._adapted.base_model.disable_adapter_layers()
        else:
            self._adapted.base_model.enable_adapter_layers()
        if name not in (NO_ADAPTER, MIXED):
            self._adapted.set_adapter(name, inference_mode=True)
        self._active = name


class SharedEncoderClassifier(Classifier):
    """A classifier with its own head, adapter and pooling on a shared encoder."""

    def __init__(
        self, shared: SharedEncoder, *, adapter: str, head: nn.Linear, pooling: Pooling
    ) -> None:
        nn.Module.__init__(self)
        self.shared = shared
        self.adapter = adapter
        self.head = head
        self.pooling = pooling

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        adapters = [self.adapter] * len(input_ids)
        hidden = self.shared.hidden_states(input_ids, attention_mask, adapters=adapters)
        return self.pool(hidden, attention_mask)
