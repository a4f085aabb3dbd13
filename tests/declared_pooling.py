"""Write the files with which a model's folder declares its pooling to sentence-transformers."""

import json
from pathlib import Path
from typing import Any

FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "lasttoken": "pooling_mode_lasttoken",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
}


def declare(
    folder: Path,
    *modes: str,
    normalize: bool = False,
    prompts: dict[str, Any] | None = None,
    **pooling: Any,
) -> Path:
    """Declare a pooling in the folder of an encoder, and return the folder.

    `prompts` is the content of `config_sentence_transformers.json`. `pooling` are further fields of
    the pooling.
    """
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    flags = {flag: mode in modes for mode, flag in FLAGS.items()}
    write_modules(folder, "Transformer", "Pooling", *(["Normalize"] if normalize else []))
    write(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width} | flags | pooling
    )
    write(folder / "config_sentence_transformers.json", prompts or {})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": False})
    return folder


def write_modules(folder: Path, *names: str) -> None:
    """Write `modules.json` with classes of sentence-transformers."""
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{name}" if index else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for index, name in enumerate(names)
    ]
    write(folder / "modules.json", modules)


def write(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))
