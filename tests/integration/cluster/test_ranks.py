"""Ranks on a Ray that counts GPUs which the machine does not have: their devices, result, progress
and errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
OF_ANOTHER_RAY = ("CUDA_VISIBLE_DEVICES", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
PROGRAM = """
import json, os, ray, sys, time, torch
from pathlib import Path
from cluster.ranks.process_group import OtherRankFailed, current_group, wait_for_ranks
from cluster.ranks.remote_ranks import run_on_ranks
from cluster.resources import Resources
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.models.errors import ModelError
from tests.unit.evaluation.inference.test_two_ranks import ROWS, write_versions

def sum_of_ranks(factor, *, offset):
    group = current_group()
    value = torch.tensor([factor * group.rank + offset])
    torch.distributed.all_reduce(value)
    devices = [None] * group.size
    torch.distributed.all_gather_object(devices, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return group.rank, int(value), devices

def fail_on_second_rank():
    if current_group().rank == 1:
        raise ModelError("the second rank fails")
    wait_for_ranks()

def fail_after_the_first_rank():
    wait_for_ranks()
    if current_group().rank == 0:
        raise OtherRankFailed("follows from the error of the second rank")
    time.sleep(2)
    raise ModelError("the second rank fails later")

def error_of(call):
    try:
        call()
    except (ModelError, ValueError) as error:
        return f"{type(error).__name__}: {error}"

ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
two = Resources(2, 2)
results = run_on_ranks(sum_of_ranks, num_ranks=2, resources=two)(10, offset=1)
failed = error_of(run_on_ranks(fail_on_second_rank, num_ranks=2, resources=two))
caused = error_of(run_on_ranks(fail_after_the_first_rank, num_ranks=2, resources=two))
write_versions(Path(sys.argv[1]), tied=True)
uri = (Path(sys.argv[1]) / "lora").as_uri()
divided = run_on_ranks(predict_rows, num_ranks=2, resources=Resources(2))(uri, rows=ROWS)
is_equal = divided.outputs == predict_rows(uri, rows=ROWS).outputs
os.environ["RAY_ADDRESS"] = "local"
refused = error_of(run_on_ranks(fail_on_second_rank, num_ranks=4, resources=Resources(4, 4)))
print(json.dumps([results, failed, caused, is_equal, refused]))
"""


def test_ranks_have_a_gpu_each_predict_together_and_all_end_with_an_error_of_one(
    tmp_path: Path,
) -> None:
    env = {name: value for name, value in os.environ.items() if name not in OF_ANOTHER_RAY}
    env["RAY_worker_niceness"] = "0"  # see `stack` in conftest.py
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        check=True,
        timeout=550,
    )
    results, failed, caused, is_equal, refused = json.loads(done.stdout.splitlines()[-1])
    assert (results[:2], sorted(results[2])) == ([0, 12], ["0", "1"])
    assert failed == "ModelError: the second rank fails"
    assert caused == "ModelError: the second rank fails later"
    assert is_equal  # and the failed ranks keep no CPUs
    assert refused == "ValueError: the evaluation needs 4 GPUs, and Ray has 2 here"
