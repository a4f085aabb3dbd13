"""A replica's configuration as JSON."""

from serving.replica.config import Challenger, ReplicaConfig, VersionRef, config_id

CONFIG = ReplicaConfig(
    champion=VersionRef(uri="s3://a", digest="a"),
    challenger=Challenger(uri="s3://b", digest="b", shadow=0.5),
    others={"lora-1": VersionRef(uri="s3://c", digest="c")},
)


def test_a_configuration_survives_json_and_unknown_keys_are_ignored() -> None:
    user_config = CONFIG.to_user_config()
    assert ReplicaConfig.model_validate(user_config) == CONFIG
    assert ReplicaConfig.model_validate(user_config | {"newer": 1}) == CONFIG
    assert config_id(user_config | {"newer": 1}) != config_id(user_config)
