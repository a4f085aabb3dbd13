"""One process group for all tests of the package, because DeepSpeed keeps the first process group
of a process."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture(scope="package", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", init_method=store.as_uri(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()
