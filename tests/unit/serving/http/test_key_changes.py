"""Events of changes of API keys. Integration tests write them to a real S3 server."""

from serving.http.api_keys import ApiKey, parse_options
from serving.http.key_changes import key_change


def key(name: str, digit: str, *options: str) -> ApiKey:
    return ApiKey(name, digit * 64, parse_options(options))


def test_a_change_of_keys_names_what_was_added_removed_changed_and_replaced_without_hashes() -> (
    None
):
    former = [key("old", "1"), key("same", "2"), key("app", "3", "texts=5"), key("rotated", "4")]
    new = [
        key("new", "5", "scopes=batch"),
        key("same", "2"),
        key("app", "3", "texts=9"),
        key("rotated", "6"),
    ]
    event, name = key_change(former, new, task="icd10", changed_at="1")
    assert event.kind == "key"
    assert event.what == "icd10: keys changed app; added new; removed old; replaced rotated"
    standard = "scopes=answer,feedback"
    assert event.before == {
        "app": [f"{standard} texts=5"],
        "old": [standard],
        "rotated": [standard],
    }
    assert event.after == {
        "app": [f"{standard} texts=9"],
        "new": ["scopes=batch"],
        "rotated": [standard],
    }
    text = event.model_dump_json() + name
    assert not any(one.sha256 in text for one in (*former, *new))


def test_replicas_that_notice_the_same_change_give_it_the_same_name() -> None:
    former, new = [key("a", "1"), key("b", "2")], [key("a", "1")]
    _, name = key_change(former, new, task="t", changed_at="1")
    assert key_change(former[::-1], new, task="t", changed_at="1")[1] == name
    others = [
        key_change(new, former, task="t", changed_at="1"),
        key_change(former, new, task="t", changed_at="2"),  # the same change, made again later
        key_change(former, new, task="u", changed_at="1"),
        key_change((), new, task="t", changed_at="1"),
        key_change(None, new, task="t", changed_at="1"),
    ]
    assert len({name, *(other for _, other in others)}) == 6
    assert others[-2][0].what == "t: keys added a"  # after all keys were removed
    assert others[-1][0].what == "t: keys at the start of a replica: a"
