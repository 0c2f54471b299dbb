"""What a call needs, and what a key may do."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Forbidden, RateLimited, Unauthenticated
from gateway.http.access import Access, Holder, Need, bare, check_rate, key_in, need_of
from gateway.http.app import create_app
from gateway.http.management import create_management_app
from gateway.http.rates import own_memory
from gateway.keys import Key, new_key

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def key_of(*scopes: str, **limits: Any) -> tuple[bytes, Key]:
    text, key = new_key("somebody", scopes or ["infer"], **limits)
    return text.encode(), key


def access_to(*keys: Key) -> Access:
    return Access(keys, range(len(keys)))


@pytest.mark.parametrize(
    ("listener", "path", "need"),
    [
        ("http", "/v2/health/live", Need(None)),
        ("management", "/ping", Need(None)),
        ("http", "/v2/healthy", Need("infer")),
        ("http", "/", Need(None)),
        ("http", "/console", Need(None)),
        ("http", "/console/static/console/app.js", Need(None)),
        ("http", "/console/events", Need("metrics", everything=True)),
        ("http", "/console/else", Need("infer")),
        ("management", "/metrics", Need("admin", everything=True)),
        ("management", "/console", Need("admin", everything=True)),
        ("metrics", "/console", Need("metrics", everything=True)),
        ("http", "/docs", Need("infer")),
        ("http", "/metrics", Need("metrics", everything=True)),
        ("http", "/monitoring/prometheus/metrics", Need("metrics", everything=True)),
        ("metrics", "/anything", Need("metrics", everything=True)),
        ("http", "/v2/repository/index", Need("admin", everything=True)),
        ("http", "/v2/repository", Need("admin", everything=True)),
        ("http", "/v2/repository/models/a/load", Need("admin", "a")),
        ("http", "/v2/repository/models/a/versions/2/default", Need("admin", "a")),
        ("http", "/v2/repository/models/a/profile", Need("admin", "a")),
        ("http", "/v2/repository/models/a/versions/1/profile", Need("admin", "a")),
        ("http", "/v2/models/a/ready", Need("infer", "a")),
        ("http", "/v2/models/a", Need("infer", "a")),
        ("http", "/v2/models/stats", Need("infer", everything=True)),
        ("http", "/v1/models/a", Need("infer", "a")),
        ("http", "/V1/Models/a/versions/3/metadata", Need("infer", "a")),
        ("http", "/v1/models/a:predict", Need("infer", "a")),
        ("http", "/predictions/a/2", Need("infer", "a")),
        ("management", "/models", Need("admin", everything=True)),
        ("management", "/models/a", Need("admin", "a")),
        ("management", "/models/a/3/set-default", Need("admin", "a")),
        ("management", "/v2/models/a", Need("admin", everything=True)),
    ],
)
def test_a_call_needs_a_scope_and_perhaps_a_model(listener: str, path: str, need: Need) -> None:
    assert need_of(listener, path) == need
    assert need_of(listener, path, preflight=True) == Need(None)


def test_every_route_of_a_model_needs_a_key_for_that_model_and_no_other_names_one() -> None:
    for listener, app in (("http", create_app()), ("management", create_management_app())):
        for route in app.routes:
            path = getattr(route, "path", "").replace("{model}", "mine").replace("{version}", "1")
            need = need_of(listener, path)
            assert need.model == ("mine" if "mine" in path else None), path
            assert need.scope is not None or path in {"/ping", "/v2/health/live", "/v2/health/ready"}, path
            assert need.everything or "metrics" not in path, path


@given(st.text(max_size=20))
def test_nothing_below_the_repository_is_open_to_less_than_admin(rest: str) -> None:
    assert need_of("http", f"/v2/repository/{rest}").scope == "admin"
    assert need_of("http", "/v2/repository" + unquote("%0A")).scope == "admin"


@given(st.text(max_size=20))
def test_on_the_management_listener_only_health_is_open(rest: str) -> None:
    need = need_of("management", "/" + rest)
    assert need.scope == "admin" or rest.lower().startswith(("ping", "v2/health"))


@given(st.from_regex(r"[^/:\n]{1,20}", fullmatch=True), st.text(max_size=20))
def test_a_call_of_a_model_is_for_that_model(model: str, rest: str) -> None:
    for path in (f"/v2/models/{model}/{rest}", f"/v1/models/{model}/{rest}", f"/predictions/{model}/{rest}"):
        assert need_of("http", path) == Need("infer", model)


def test_a_key_is_known_by_its_text_alone() -> None:
    text, key = key_of()
    access = access_to(key, key_of()[1])
    assert access.holder(text, 0.0).id == key.id
    for wrong in (None, b"", text[:-1], text + b"a", text.swapcase(), b"gw_" + key.id.encode() + b"_", b"\xff" * 300):
        with pytest.raises(Unauthenticated):
            access.holder(wrong, 0.0)


@given(st.binary(max_size=300))
def test_nothing_else_is_a_key(data: bytes) -> None:
    with pytest.raises(Unauthenticated):
        ONE_KEY.holder(data, 0.0)


ONE_KEY = access_to(key_of()[1])


def test_without_keys_none_is_needed_and_an_invalid_one_is_still_a_key() -> None:
    assert not Access().required
    revoked = access_to(new_key("r", ["admin"], revoked=NOW)[1])
    assert (revoked.required, revoked.administered) == (True, False)
    assert access_to(key_of("admin")[1]).administered
    assert not access_to(key_of("infer", "metrics")[1]).administered


def test_a_key_ends_at_its_time() -> None:
    text, key = key_of(expires=NOW)
    access = access_to(key)
    assert access.holder(text, (NOW - timedelta(seconds=1)).timestamp()).mortal
    with pytest.raises(Unauthenticated, match=r"has expired at 2030-01-01T00:00:00Z"):
        access.holder(text, NOW.timestamp())


def test_a_revoked_key_says_so() -> None:
    text, key = key_of(revoked=NOW)
    with pytest.raises(Unauthenticated, match="revoked"):
        access_to(key).holder(text, 0.0)


@pytest.mark.parametrize(("scopes", "allowed"), [(["infer"], 1), (["metrics"], 1), (["infer", "metrics"], 2)])
def test_admin_includes_the_other_scopes_and_they_include_nothing(scopes: list[str], allowed: int) -> None:
    def count(holder: Holder) -> int:
        return sum(may(holder, Need(scope)) for scope in ("infer", "metrics", "admin"))

    assert count(Holder(key_of(*scopes)[1], 0)) == allowed
    assert count(Holder(key_of("admin")[1], 0)) == 3


def may(holder: Holder, need: Need) -> bool:
    try:
        holder.check(need)
    except Forbidden:
        return False
    return True


def test_a_key_for_some_models_is_for_those_and_for_nothing_about_all() -> None:
    holder = Holder(key_of(models=["a", "b*"])[1], 0)
    allowed = {model for model in ("a", "b", "bc", "c", "A", "") if may(holder, Need("infer", model))}
    assert allowed == {"a", "b", "bc"}
    assert may(holder, Need("infer"))
    assert not may(holder, Need("infer", everything=True))


def test_models_that_are_remembered_are_bounded() -> None:
    holder = Holder(key_of(models=["a"])[1], 0)
    for number in range(5000):
        assert not holder.is_for(str(number))
    assert holder.is_for("a")
    assert len(holder._allowed) <= 1024  # noqa: SLF001 - nothing outside shows it


def test_who_is_too_fast_hears_when_to_come_back() -> None:
    holder, rates = Holder(key_of(rate=0.25, burst=2)[1], 7), own_memory()
    check_rate(holder, rates, 100.0)
    check_rate(holder, rates, 100.0)
    with pytest.raises(RateLimited, match=r"0\.25 requests a second") as caught:
        check_rate(holder, rates, 100.5)
    assert caught.value.retry_after == math.ceil(3.5)
    check_rate(holder, rates, 104.0)


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        (b"authorization", b"Bearer k", b"k"),
        (b"authorization", b"bearer   k ", b"k"),
        (b"x-api-key", b" k ", b"k"),
        (b"authorization", b"Basic k", None),
        (b"authorization", b"k", None),
        (b"cookie", b"k", None),
    ],
)
def test_a_key_is_found_where_it_is_sent(name: bytes, value: bytes, key: bytes | None) -> None:
    assert bare(key_in([(b"host", b"a"), (name, value)])[2]) == key
