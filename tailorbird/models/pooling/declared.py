"""Read the pooling and prompt that a model declares as in sentence-transformers."""

from typing import Any, Literal, get_args

from tailorbird import storage
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.registry.pooling import Pooling, PoolingMode
from tailorbird.storage.node_cache import local_copy

Purpose = Literal["classification", "retrieval"]
MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
CHAIN = ("Transformer", "Pooling", "Normalize")
PACKAGE = "sentence_transformers"  # types of other packages are code of the model
MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)
FLAGS: dict[str, PoolingMode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
"""Names of the modes in the config of the module `Pooling` before sentence-transformers 6."""


class PoolingError(ValueError):
    """A model declares a pooling that is not supported."""


def read_pooling(uri: str, *, purpose: Purpose) -> Pooling:
    """Return the pooling that the model in a folder on S3 or disk declares, or the mean.

    The embedding is that of `SentenceTransformer.encode` with the prompt of the purpose. Raises
    PoolingError for an unsupported module or setting, and StorageError.
    """
    if not declares_pooling(uri):
        return Pooling()
    modules = storage.read_json(f"{uri}/{MODULES}")
    names = tuple(_class_name(str(module.get("type"))) for module in modules)
    if names not in (CHAIN[:2], CHAIN):
        allowed = f"{', '.join(CHAIN[:2])} and, optionally, {CHAIN[2]}"
        raise _unsupported(uri, f"the modules {', '.join(names)}", allowed=allowed)
    _require_plain_text(uri, folder=modules[0].get("path", ""))
    config = storage.read_json(f"{uri}/{modules[1].get('path')}/config.json")
    prompt = _prompt(uri, purpose=purpose)
    num_skipped = 0
    if not config.get("include_prompt", True):
        num_skipped = _num_tokens(uri, prompt)
    return Pooling(
        mode=_mode(uri, config),
        normalize=names == CHAIN,
        prompt=prompt,
        num_skipped=num_skipped,
    )


def declares_pooling(uri: str) -> bool:
    """Return whether the folder of a model declares its pooling."""
    return storage.exists(f"{uri}/{MODULES}")


def _class_name(type_name: str) -> str:
    """Return the name of a class of sentence-transformers, or the whole name of another."""
    package, _, rest = type_name.partition(".")
    if package == PACKAGE:
        return rest.rpartition(".")[2]
    return type_name


def _mode(uri: str, config: Any) -> PoolingMode:
    """Return the mode of a module `Pooling`, which it names or marks with a flag."""
    modes = config.get("pooling_mode")
    if isinstance(modes, str):
        modes = [modes]
    modes = modes or [mode for flag, mode in FLAGS.items() if config.get(flag)] or ["mean"]
    if len(modes) > 1 or modes[0] not in MODES:
        given = f"the pooling {' + '.join(modes)}"
        raise _unsupported(uri, given, allowed=f"one of {', '.join(MODES)}")
    mode: PoolingMode = modes[0]
    return mode


def _require_plain_text(uri: str, *, folder: str) -> None:
    """Raise PoolingError if the module `Transformer` changes texts or is elsewhere."""
    if folder:
        given = f"an encoder in the folder {folder}"
        raise _unsupported(uri, given, allowed="one in the folder of modules.json")
    config = _optional_json(f"{uri}/sentence_bert_config.json")
    if config.get("do_lower_case"):
        raise _unsupported(uri, "do_lower_case", allowed="the lower-casing of tokenizer.json")
    if "message" in config.get("modality_config", {}):
        allowed = "texts with a prompt before them"
        raise _unsupported(uri, "texts in a chat template", allowed=allowed)


def _prompt(uri: str, *, purpose: Purpose) -> str:
    """Return the prompt of a purpose, or "" if there is none. Ignores the case of names.

    `encode` uses the default prompt. In retrieval, both texts are messages of users, so they have
    the same prompt.
    """
    config = _optional_json(f"{uri}/{PROMPTS}")
    prompts = {name.lower(): text for name, text in (config.get("prompts") or {}).items()}
    default = (config.get("default_prompt_name") or "").lower()
    names = ["query", default]
    if purpose == "classification":
        names = ["classification", default, "query"]
    declared = [name for name in names if name in prompts]
    return (prompts[declared[0]] or "") if declared else ""


def _optional_json(file: str) -> Any:
    return storage.read_json(file) if storage.exists(file) else {}


def _num_tokens(uri: str, prompt: str) -> int:
    """Return the number of tokens of a prompt and of the special tokens before it."""
    if not prompt:
        return 0
    tokenizer = load_tokenizer(local_copy(uri))
    tokens = tokenizer(prompt)["input_ids"]
    if tokens[-1] in tokenizer.all_special_ids:
        tokens = tokens[:-1]
    return len(tokens)


def _unsupported(uri: str, given: str, *, allowed: str) -> PoolingError:
    return PoolingError(
        f"{uri} declares {given}, which Tailorbird does not compute; allowed: {allowed}. Use "
        f"another model or, for the mean of the tokens, a copy of this one without {MODULES}"
    )
