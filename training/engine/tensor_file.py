"""Write a safetensors file one tensor after another. safetensors itself needs all tensors of a file
at once."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

DTYPE = "F32"
VALUE_BYTES = 4
LENGTH_BYTES = 8
ALIGNMENT = 8  # of the first value, as in safetensors' own files


def save_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]], path: Path, *, shapes: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """Write fp32 tensors to a safetensors file as they arrive, so that memory holds one of them at
    a time. Return the position of the first byte of each tensor.

    `shapes` has the names and shapes of all tensors, in their order, because a file begins with
    them. Raises ValueError if other tensors arrive.

    The format is a length of 8 bytes, a JSON header of this length with the place of each tensor,
    and their values (https://huggingface.co/docs/safetensors, "Format").
    """
    header = {}
    begins = {}
    end = 0
    for name, shape in shapes.items():
        begin = end
        end += VALUE_BYTES * torch.Size(shape).numel()
        begins[name] = begin
        header[name] = {"dtype": DTYPE, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    first = LENGTH_BYTES + len(text)
    expected = iter(shapes.items())
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for name, tensor in tensors:
            expected_name, shape = next(expected, ("", ()))
            if name != expected_name or tensor.shape != torch.Size(shape):
                raise ValueError(
                    f"{path.name} has no place for {name} of shape {list(tensor.shape)}"
                )
            tensor.contiguous().numpy().tofile(file)
    missing = next(expected, None)
    if missing is not None:
        raise ValueError(f"{path.name} lacks {missing[0]}")
    return {name: first + begin for name, begin in begins.items()}
