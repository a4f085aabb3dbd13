"""Any GGUF file is converted or rejected with a FetchError."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tailorbird.models.base_model import FetchError, dequantize

TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), "▁", "a", "▁a"]
WIDTH, HEADS = 32, 2


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a GGUF file with a language model of one layer and its tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types([1] * len(TOKENS))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = dict.fromkeys((f"blk.0.{part}.weight" for part in parts), (WIDTH, WIDTH))
    shapes |= dict.fromkeys(("token_embd.weight", "output.weight"), (len(TOKENS), WIDTH))
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float16))
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def convert(content: bytes, folder: Path) -> list[str] | str:
    """Return the names of the converted files, or the message of the FetchError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "model.gguf").write_bytes(content)
    try:
        converted = dequantize(folder / "model.gguf", folder=folder / "out")
    except FetchError as error:
        return str(error)
    return sorted(path.name for path in converted.iterdir())


def test_a_valid_file_is_converted(valid: bytes, tmp_path: Path) -> None:
    names = convert(valid, tmp_path / "model")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names), names


@pytest.mark.parametrize(
    "name", [b"llama.block_count", b"llama.embedding_length", b"llama.feed_forward_length"]
)
def test_a_size_that_the_tensors_do_not_have_is_rejected_before_the_model_is_allocated(
    name: bytes, valid: bytes, tmp_path: Path
) -> None:
    content = bytearray(valid)
    content[content.index(name) + len(name) + 4 + 3] = (
        127  # the highest byte of the value after its type
    )
    outcome = convert(bytes(content), tmp_path / "model")
    assert f"its {name.decode()} is" in outcome


DAMAGE = st.lists(
    st.tuples(st.integers(0, 1 << 12), st.sampled_from((0, 1, 9, 127, 255))), min_size=1, max_size=3
)


@settings(max_examples=10)
@given(damage=DAMAGE)
@example(damage=[(0, 0)])  # the magic number
@example(damage=[(4, 9)])  # the version
@example(damage=[(15, 255)])  # the number of tensors
@example(damage=[(23, 127)])  # the number of values
def test_a_damaged_file_is_converted_or_rejected(
    damage: list[tuple[int, int]], valid: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(valid)
    for position, value in damage:
        content[position] = value
    convert(bytes(content), tmp_path_factory.getbasetemp() / "damaged")


@settings(max_examples=8)
@given(share=st.floats(0, 0.9), extra=st.binary(max_size=8))
def test_a_truncated_file_is_rejected(
    share: float, extra: bytes, valid: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outcome = convert(
        valid[: int(share * len(valid))] + extra, tmp_path_factory.getbasetemp() / "truncated"
    )
    assert "model.gguf" in outcome
