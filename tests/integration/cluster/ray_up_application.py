"""Deploy an application whose answer is the address of the replica's node, and wait until it
runs."""

import time

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from serving.deploy.serve_client import application_status, put_applications
from serving.deploy.serve_schema import ServeApplication

NAME = "address"


# The head node has no CPUs, but has to run one of the replicas.
@serve.deployment(num_replicas=2, max_replicas_per_node=1, ray_actor_options={"num_cpus": 0})
class Address:
    """Answers with the address of its node."""

    async def __call__(self, _: Request) -> PlainTextResponse:
        return PlainTextResponse(ray.util.get_node_ip_address())


application = Address.bind()  # type: ignore[attr-defined]


def main() -> None:
    path = f"{__spec__.name}:application"
    put_applications([ServeApplication(name=NAME, route_prefix=f"/{NAME}", import_path=path)])
    while not application_status(NAME).startswith("RUNNING"):
        print(application_status(NAME), flush=True)
        time.sleep(1)


if __name__ == "__main__":
    main()
