"""The cluster files for `ray up` pass Ray's own preparation and validation."""

import copy
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start
from ray.serve._private import constants as serve_constants

from cluster.local import haproxy, ray_env
from serving.deploy.serve_client import listen_host

CLUSTER = Path(__file__).parents[3] / "cluster" / "ray_up"
FILES = ("aws", "onprem")
NODE_ENV = "node.env"
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|[0-9a-fA-F]{32,}|(?i:secret_access_key|password)\s*[:=]"
)
HAPROXY_PATHS = re.findall(r'"(\w+)", "/tmp/', Path(serve_constants.__file__).read_text())
"""Variables of Serve with a path of HAProxy whose default is in /tmp."""


@pytest.fixture
def home_folder() -> Iterator[Path]:
    """A home folder with a short path, as node.env requires."""
    with tempfile.TemporaryDirectory(prefix="tb-", dir="/tmp") as folder:
        yield Path(folder)


def _written(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with Ray's defaults; raise if `ray up` would reject it before it contacts
    the provider."""
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(content))
    validate_config(prepared)
    return prepared


def _sourced(
    home_folder: Path, *, before: str = "", after: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command in a shell that has read node.env."""
    command = ["bash", "-c", f"{before} . {CLUSTER / NODE_ENV} {after}"]
    bare = {"HOME": str(home_folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=bare, capture_output=True, text=True, check=False)


def _commands(prepared: dict[str, Any]) -> list[str]:
    """Return all commands that nodes run."""
    kinds = ("initialization_commands", "head_setup_commands", "worker_setup_commands")
    starts = ("head_start_ray_commands", "worker_start_ray_commands")
    return [command for kind in (*kinds, *starts) for command in prepared[kind]]


def _start_options(command: str) -> dict[str, Any]:
    """Return the options of a `ray start` command, parsed by Ray's own command line."""
    words = shlex.split(command.partition("ray start ")[2])
    return dict(ray_start.make_context("start", words).params)


def test_ray_rejects_a_file_with_an_error_in_it() -> None:
    content = _written("aws")
    content["available_node_types"]["training"].update(spot=True)
    with pytest.raises(jsonschema.ValidationError):
        _checked(content)


@pytest.mark.parametrize("name", FILES)
def test_every_command_is_valid_for_the_shell_and_ray(name: str) -> None:
    commands = _commands(_checked(_written(name)))
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
        loads = f". ~/tailorbird/cluster/ray_up/{NODE_ENV} && "
        assert "ray st" not in command or command.startswith(loads)
    starts = [_start_options(command) for command in commands if "ray start" in command]
    assert [options["head"] for options in starts] == [True, False]
    head, worker = starts
    assert (head["num_cpus"], head["dashboard_host"]) == (0, "127.0.0.1")
    assert (worker["num_cpus"], worker["address"]) == (None, f"$RAY_HEAD_IP:{head['port']}")


@pytest.mark.parametrize("name", FILES)
def test_ray_starts_if_the_limit_of_open_files_is_lower_than_requested(
    name: str, home_folder: Path
) -> None:
    (home_folder / "tailorbird").symlink_to(CLUSTER.parents[1])
    program = home_folder / "tailorbird-venv" / "bin" / "ray"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho $1 with $(ulimit -n) files\n")
    program.chmod(0o755)
    environment = {"HOME": str(home_folder), "PATH": os.environ["PATH"]}
    for command in _commands(_checked(_written(name))):
        if "ray start" in command:
            limited = ["bash", "-c", f"ulimit -Sn 512 && ulimit -Hn 1024 && {command}"]
            done = subprocess.run(
                limited, env=environment, capture_output=True, text=True, check=False
            )
            assert done.stdout == "start with 1024 files\n", done.stderr


@pytest.mark.parametrize("name", FILES)
def test_all_tracked_files_are_copied_to_nodes_without_settings_keys_and_rows(name: str) -> None:
    left_out = _checked(_written(name))["rsync_exclude"]
    listing = subprocess.run(
        ["git", "ls-files"], cwd=CLUSTER.parents[1], capture_output=True, text=True, check=False
    ).stdout

    def copied(path: str) -> bool:
        return not any(fnmatch(part, pattern) for part in Path(path).parts for pattern in left_out)

    assert [path for path in listing.splitlines() if not copied(path)] == []
    for path in (
        ".env",
        ".env.prod",
        "k8s/.env",
        "key.pem",
        "rows/train-0.parquet",
        ".git/config",
        "rows.csv",
    ):
        assert not copied(path)


@pytest.mark.parametrize("name", FILES)
def test_the_token_comes_from_a_file_and_the_cluster_files_contain_no_secret(name: str) -> None:
    assert _checked(_written(name))["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for file in (f"{name}.yaml", NODE_ENV):
        assert SECRETS.search((CLUSTER / file).read_text(encoding="utf-8")) is None


def test_aws_nodes_are_protected_and_only_training_runs_on_spot_instances() -> None:
    prepared = _checked(_written("aws"))
    kinds = prepared["available_node_types"]
    for kind in kinds.values():
        config = kind["node_config"]
        assert config["IamInstanceProfile"]["Arn"].startswith("arn:aws:iam::")
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        assert config["SecurityGroupIds"]  # otherwise Ray creates one that is open to the internet
        assert all(disk["Ebs"]["Encrypted"] for disk in config["BlockDeviceMappings"])
    assert prepared["provider"]["cache_stopped_nodes"] is False

    spot = {name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"training"}
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert (kinds["training"]["min_workers"], kinds["serving"]["min_workers"]) == (0, 1)
    most = sum(kind["max_workers"] for name, kind in kinds.items() if name != "head")
    assert most == prepared["max_workers"]

    commands = _commands(prepared)
    region = f"AWS_REGION={prepared['provider']['region']} "
    assert all(region in command for command in commands if "ray start" in command)
    # Ray's default commands install another Ray and open the dashboard on every interface.
    assert not any("0.0.0.0" in command or "ray-wheels" in command for command in commands)


def test_node_env_raises_the_limit_of_locked_memory() -> None:
    command = f"ulimit -Sl 16 && . {CLUSTER / NODE_ENV} && ulimit -Sl && ulimit -Hl"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    soft, hard = done.stdout.split()
    assert soft == hard


def test_nodes_start_ray_with_the_settings_of_a_cluster() -> None:
    output = _sourced(Path("/home/user"), after="&& env -0").stdout
    here = dict(line.split("=", 1) for line in output.split("\0") if line)
    assert ray_env.CLUSTER_SETTINGS.items() <= here.items()
    program = Path(here[haproxy.PROGRAM]).relative_to("/home/user/tailorbird")
    assert (CLUSTER.parents[1] / program).samefile(haproxy.__file__)
    assert here["RAY_AUTH_MODE"] == "token"
    assert here["RAY_AUTH_TOKEN_PATH"] == "/home/user/.ray/auth_token"
    assert here["PATH"].startswith("/home/user/tailorbird-venv/bin:")
    # Serve listens on every interface, so HAProxy reaches replicas of other nodes.
    assert listen_host(here["TAILORBIRD_SERVE_URL"]) == "0.0.0.0"
    assert here["TAILORBIRD_SERVE_URL"].endswith(":8000")


def test_other_users_of_a_node_cannot_enter_the_folder_with_the_files_and_sockets_of_ray_and_haproxy(
    home_folder: Path,
) -> None:
    folder = home_folder / ".tb"
    folder.mkdir(mode=0o755)
    setups = {line for name in FILES for line in _written(name)["setup_commands"] if ".tb" in line}
    assert len(setups) == 1
    output = _sourced(
        home_folder, before=f"{setups.pop()} &&", after="&& touch ~/new && env -0"
    ).stdout
    here = dict(line.split("=", 1) for line in output.split("\0") if line)
    assert (folder.stat().st_mode & 0o777, (home_folder / "new").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )
    assert here["RAY_TMPDIR"] == str(folder)
    assert len(HAPROXY_PATHS) >= 5
    assert [name for name in HAPROXY_PATHS if not Path(here[name]).is_relative_to(folder)] == []


def test_a_node_with_a_home_folder_that_is_too_long_for_haproxy_s_sockets_does_not_start_ray() -> (
    None
):
    """With such a path, HAProxy would end at each start, and Serve would start it again and
    again."""
    refused = _sourced(Path("/home/" + 18 * "x"), after="&& echo started")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "RAY_TMPDIR" in refused.stderr
    longest = _sourced(Path("/home/" + 17 * "x"), after="&& env -0")
    here = dict(line.split("=", 1) for line in longest.stdout.split("\0") if line)
    # HAProxy limits the path of a socket, to which Ray adds the node's id of 56 digits, to 97
    # bytes.
    assert max(len(here[name]) for name in HAPROXY_PATHS) + 57 == 97
