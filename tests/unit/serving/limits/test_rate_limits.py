"""Limits per minute on requests, texts and tokens of a key."""

import pytest

from serving.http.api_keys import ApiKey, parse_options
from serving.http.schemas import RequestError
from serving.limits import RateLimiter


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def key(*options: str) -> ApiKey:
    return ApiKey("app", "0" * 64, parse_options(options))


def waiting_s(limiter: RateLimiter, key: ApiKey) -> int:
    """Return the `retry-after` of a refused request."""
    with pytest.raises(RequestError) as caught:
        limiter.accept(key)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    return int((caught.value.headers or {})["retry-after"])


def test_requests_are_limited_and_refill_evenly() -> None:
    clock = Clock()
    limiter, slow = RateLimiter(now=clock), key("requests=6")
    for _ in range(6):
        limiter.accept(slow)
    with pytest.raises(RequestError):
        limiter.accept(slow)
    limiter.accept(ApiKey("app", "1" * 64, slow.options))  # another key of the same name
    clock.s += waiting_s(limiter, slow)
    limiter.accept(slow)
    assert waiting_s(limiter, slow)
    clock.s += 3600
    for _ in range(6):
        limiter.accept(slow)
    assert waiting_s(limiter, slow)


@pytest.mark.parametrize("quantity", ["texts", "tokens"])
def test_a_request_may_use_more_than_what_is_left_and_the_key_then_waits_for_it(
    quantity: str,
) -> None:
    clock = Clock()
    limiter, limited = RateLimiter(now=clock), key(f"{quantity}=60")
    limiter.accept(limited)
    limiter.charge(limited, **{quantity: 59})
    limiter.accept(limited)
    limiter.charge(limited, **{quantity: 120})
    assert waiting_s(limiter, limited) in (120, 121)  # 60 a minute refill -119 to 1
    clock.s += 119
    assert waiting_s(limiter, limited)
    clock.s += 1
    limiter.accept(limited)


def test_a_request_that_one_limit_refuses_is_not_charged_to_another() -> None:
    clock = Clock()
    limiter, limited = RateLimiter(now=clock), key("requests=2", "texts=60")
    limiter.accept(limited)
    limiter.charge(limited, texts=60)
    for _ in range(5):
        waiting_s(limiter, limited)
    clock.s += 1
    limiter.accept(limited)
