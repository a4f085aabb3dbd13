"""Contract tests of the private parts of transformers that the project uses."""

import importlib
import inspect
from typing import Any

import pytest
import transformers

from tailorbird.models.attention import continuous_batching_attention, transformers_private
from tailorbird.models.generation import answer_prompts
from tests import small_chat

BATCHING = "transformers.generation.continuous_batching"


def missing(path: str) -> str:
    expected = transformers_private.TRANSFORMERS_VERSION
    return (
        f"transformers {transformers.__version__} has no {path}; transformers_private.py was "
        f"written for {expected}"
    )


def test_the_installed_version_of_transformers_is_the_expected_one() -> None:
    expected = f"{transformers_private.TRANSFORMERS_VERSION}."
    assert transformers.__version__.startswith(expected), (
        "check tailorbird/models/attention/transformers_private.py"
    )


@pytest.mark.parametrize(
    "path",
    [
        f"{BATCHING}.cb_logits_processors:ContinuousBatchingLogitsProcessor.fill_defaults",
        f"{BATCHING}.cb_logits_processors:ContinuousBatchingLogitsProcessor.prepare_tensor_args",
        f"{BATCHING}.cb_logits_processors:ContinuousBatchingLogitsProcessor.supported_kwargs",
    ],
)
def test_a_private_part_exists(path: str) -> None:
    module, _, attributes = path.partition(":")
    value: Any = importlib.import_module(module)
    for name in attributes.split("."):
        value = (
            getattr(value, name, None)
            if name != "supported_kwargs"
            else inspect.get_annotations(value).get(name)
        )
        assert value is not None, missing(path)


def test_attention_gets_the_bounds_of_the_requests_in_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounds = []

    def recorded(options: Any) -> Any:
        bounds.append(transformers_private.request_bounds(options))
        return bounds[-1]

    monkeypatch.setattr(continuous_batching_attention, "request_bounds", recorded)
    answer_prompts(small_chat.language_model(), [[5, 6, 7], [8, 9]], max_new_tokens=3, end_id=1)
    assert bounds[0] in (((0, 2, 5),) * 2, ((0, 3, 5),) * 2), missing(
        "cu_seq_lens_q, cu_seq_lens_k and write_index in an attention's options"
    )
