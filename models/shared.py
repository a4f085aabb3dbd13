"""One copy of a pretrained encoder for all versions that leave its weights as they are: heads and LoRA adapters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cluster.fetch import local_copy
from data.encode import load_tokenizer
from models.classifier import Classifier, masked_mean
from models.load import LoadedModel, checked_copy, default_device, load_encoder, load_head, require_whole_adapter
from models.registry import ModelVersion

BARE = "__base__"
"""PEFT's name for the rows of a batch that no adapter is for."""
MIXED = "mixed"


def adapter_of(version: ModelVersion) -> str:
    """What a version's adapter is called in a shared encoder."""
    return version.digest if version.kind == "lora" else BARE


class SharedEncoder:
    """A pretrained encoder in a dtype, and over it the adapters of any number of versions.

    What changes its layers (`add`, `remove`) and what runs them (`embed`) must be called on one thread.
    """

    def __init__(self, base_model: str, *, dtype: str, device: str | None = None) -> None:
        folder = local_copy(base_model)
        self.device = device or default_device()
        self.tokenizer = load_tokenizer(folder)
        encoder = load_encoder(folder).to(self.device, dtype=getattr(torch, dtype))
        self._encoder: nn.Module = encoder.eval().requires_grad_(False)
        self._adapted: Any = None
        self._active = ""

    def add(self, version: ModelVersion) -> LoadedModel[ModelVersion]:
        """The version, whose files have to be on this node or are fetched; ModelError as `models.load.load_weights`."""
        folder = checked_copy(version.uri)
        head = load_head(folder).to(self.device).eval().requires_grad_(False)  # fp32, as `models.load.load_version`
        name = adapter_of(version)
        if name != BARE:
            self._add_adapter(name, folder / "adapter")
        model = SharingClassifier(self, adapter=name, head=head).eval()
        return LoadedModel(model, self.tokenizer, version.classes, version.max_length, version)

    def _add_adapter(self, name: str, folder: Path) -> None:
        from peft import PeftModel

        options: dict[str, Any] = {"adapter_name": name, "autocast_adapter_dtype": False}
        if self._adapted is None:
            self._adapted = PeftModel.from_pretrained(self._encoder, folder, **options)
        else:
            self._adapted.load_adapter(folder, torch_device=self.device, **options)
        self._active = ""
        self._adapted.eval()
        try:
            require_whole_adapter(self._adapted, folder, name=name)
        except ValueError:
            self._remove_adapter(name)
            raise

    def remove(self, version: ModelVersion) -> None:
        """Forgets a version's adapter; it must not be asked any more."""
        if adapter_of(version) != BARE:
            self._remove_adapter(version.digest)

    def _remove_adapter(self, name: str) -> None:
        self._active = ""
        if len(self._adapted.peft_config) == 1:
            self._encoder, self._adapted = self._adapted.unload(), None
        else:
            self._adapted.delete_adapter(name)

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, adapters: Sequence[str]) -> torch.Tensor:
        """Mean of the last hidden states over the real tokens, each row through its adapter: [B, T], [B, T] -> [B, D].

        Raises KeyError for an adapter that is not there, which PEFT would leave out.
        """
        names = set(adapters)
        known = {BARE} if self._adapted is None else {BARE, *self._adapted.peft_config}
        if names - known:
            raise KeyError(f"adapter {sorted(names - known)[0]} is not loaded")
        rows = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._adapted is None:
            hidden = self._encoder(**rows).last_hidden_state
        elif len(names) > 1:
            self._activate(MIXED)
            hidden = self._adapted(**rows, adapter_names=list(adapters)).last_hidden_state
        else:  # PEFT's path for mixed rows copies each layer's input
            self._activate(*names)
            hidden = self._adapted.base_model.model(**rows).last_hidden_state
        return masked_mean(hidden, attention_mask)

    def _activate(self, name: str) -> None:
        """Makes an adapter the only one, or none: a walk through all layers, so only where it changes."""
        if self._active == name:
            return
        if name == BARE:
            self._adapted.base_model.disable_adapter_layers()
        else:
            self._adapted.base_model.enable_adapter_layers()
        if name not in (BARE, MIXED):
            self._adapted.set_adapter(name, inference_mode=True)
        self._active = name


class SharingClassifier(Classifier):
    """A classifier whose encoder, with its adapter, is a shared one: the weights that are its own are its head's."""

    def __init__(self, shared: SharedEncoder, *, adapter: str, head: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.shared = shared
        self.adapter = adapter
        self.head = head

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.shared.embed(input_ids, attention_mask, adapters=[self.adapter] * len(input_ids))
