"""Compile a grammar and try it on random answers: the program of a child process.

The kernel ends the process if a grammar takes too much processor time or memory. A request on
standard input is a line of JSON, `{"tokens": bytes, "grammar": bytes}`, and
then that many bytes of a serialized `TokenizerInfo` (0 for the one before) and of EBNF. A reply on
standard output is a line of JSON, `{"compiled": bytes}` with the serialized grammar after it,
`{"message": text}` with xgrammar's error, or `{}` if the grammar is too slow. The process ends with
0 when nothing is requested for `IDLE_S` seconds or its parent has ended. It imports xgrammar only,
which takes 1.5 s and 300 MB.
"""

import json
import random
import resource
import select
import sys
import time
from typing import Any

import numpy as np
import xgrammar

IDLE_S = 60.0
MAX_COMPILE_S = 10
"""Maximum processor time to compile a grammar: a text of up to 256 characters of any kind takes 6 s
with 49,152 tokens."""
MAX_BYTES = 1 << 30
"""Maximum memory for a grammar, in addition to that of the idle process."""
NUM_TOKENS = 500
MAX_TRIAL_S = 2.0
"""Tokens of random answers, and the maximum processor time to find those allowed before each of
them, together. A usual token takes 0.1 ms."""


def main() -> None:
    """Answer requests until there are none."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + MAX_BYTES,) * 2)
    requests = sys.stdin.buffer
    compiler: Any = None
    while select.select([requests], [], [], IDLE_S)[0]:
        line = requests.readline()
        if not line:
            return
        request = json.loads(line)
        if request["tokens"]:
            tokens = requests.read(request["tokens"]).decode()
            info = xgrammar.TokenizerInfo.deserialize_json(tokens)
            compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        grammar = requests.read(request["grammar"]).decode()
        header, content = _reply(compiler, grammar)
        sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + content)
        sys.stdout.buffer.flush()


def _reply(compiler: Any, grammar: str) -> tuple[dict[str, Any], bytes]:
    """Return the line and the bytes of a reply."""
    limit = int(time.process_time()) + 1 + MAX_COMPILE_S
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    try:
        compiled = compiler.compile_grammar(grammar)
    except (RuntimeError, ValueError) as error:
        return {"message": str(error)}, b""
    except MemoryError:
        return {}, b""
    if not _is_quick(compiled):
        return {}, b""
    content = compiled.serialize_json().encode()
    return {"compiled": len(content)}, content


def _is_quick(compiled: Any) -> bool:
    """Tell if the allowed tokens of random answers are found in time."""
    info = compiled.tokenizer_info
    ends = set(info.stop_token_ids)
    words = np.empty((1, (info.vocab_size + 31) // 32), dtype=np.int32)
    draw = random.Random(0)
    matcher = xgrammar.GrammarMatcher(compiled)
    seconds = 0.0
    for _ in range(NUM_TOKENS):
        started = time.process_time()
        matcher.fill_next_token_bitmask(words)
        seconds += time.process_time() - started
        if seconds > MAX_TRIAL_S:
            return False
        bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=info.vocab_size)
        allowed = [token for token in bits.nonzero()[0].tolist() if token not in ends]
        if not allowed or not matcher.accept_token(draw.choice(allowed)):
            matcher.reset()
    return True


def _data_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        (size,) = (line.split()[1] for line in status if line.startswith("VmData:"))
    return int(size) << 10


if __name__ == "__main__":
    main()
