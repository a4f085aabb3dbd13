"""A resource is released once, after its last use."""

from serving.engines.ref_counted import RefCounted


def test_a_resource_is_released_once_after_its_last_use_and_not_without_unload() -> None:
    released: list[str] = []
    resource = RefCounted(lambda: released.append("released"))
    with resource.use():
        pass
    with resource.use():
        with resource.use():
            resource.unload()
        assert released == []
    assert released == ["released"]
    with resource.use():
        resource.unload()
    assert released == ["released"]
