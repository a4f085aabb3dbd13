"""Logits of exported folders, computed in a process that has neither Tailorbird nor its folder on
its path."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

def causal(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if (Path(folder) / "adapter_config.json").is_file():
        from peft import PeftModel
        base = AutoModelForCausalLM.from_pretrained(folder + "/base", dtype="float32")
        model = PeftModel.from_pretrained(base, folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return model.eval()(input_ids=ids).logits[0].float()

def classifier(folder, text):
    from sentence_transformers import SentenceTransformer
    return SentenceTransformer(folder, device="cpu").encode(text)

jobs, functions = json.load(sys.stdin), {"causal": causal, "classifier": classifier}
with torch.inference_mode():
    logits = {name: functions[job["kind"]](job["folder"], job["text"]) for name, job in jobs.items()}
assert not {"tailorbird", "training", "cluster"} & {name.partition(".")[0] for name in sys.modules}
print(json.dumps({name: values.tolist() for name, values in logits.items()}))
"""


def logits_of(
    jobs: Mapping[str, tuple[str, Path, str]], *, folder: Path
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the logits of a text by job: (`causal` or `classifier`, exported folder, text).

    Those of a classifier are [L], those of a causal model [T, V] for the prompt that ends before
    the answer.
    """
    content = {
        name: {"kind": kind, "folder": str(path), "text": text}
        for name, (kind, path, text) in jobs.items()
    }
    result = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],
        input=json.dumps(content),
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert "newly initialized" not in result.stderr
    return {
        name: np.array(values)
        for name, values in json.loads(result.stdout.splitlines()[-1]).items()
    }
