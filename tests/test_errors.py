import re
from inspect import getdoc

import pytest

from gateway import errors
from gateway.errors import GatewayError, from_code
from gateway.http.responses import error_body, error_headers, status_of


def tree(kind: type[GatewayError] = GatewayError) -> list[type[GatewayError]]:
    """Those in gateway.errors: what a module derives for itself alone keeps the code of its parent."""
    ours = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(found for child in ours for found in tree(child))]


@pytest.mark.parametrize("kind", tree())
def test_every_error_comes_back_from_its_code_as_what_it_was(kind: type[GatewayError]) -> None:
    error = from_code(kind.code, "it went wrong")
    assert type(error) is kind
    assert error.message == "it went wrong"
    assert str(error) == "it went wrong"


def test_no_two_errors_share_a_code() -> None:
    codes = [kind.code for kind in tree()]
    assert len(set(codes)) == len(codes)
    assert "cancelled" not in codes  # what an instance answers to a cancellation is no error


def test_an_unknown_code_becomes_the_root() -> None:
    assert type(from_code("from the future", "who knows")) is GatewayError


def test_the_drawn_tree_is_the_real_one() -> None:
    drawing = (errors.__doc__ or "").split("GatewayError\n")[1].split("\n\n")[0]
    drawn = {}
    parents: list[str] = ["GatewayError"]
    for line in drawing.splitlines():
        found = re.match(r"([│ ├└─]+)(\w+)", line)
        assert found, line
        depth = len(found[1]) // 3
        parents = [*parents[:depth], found[2]]
        drawn[found[2]] = parents[depth - 1]
    assert drawn == {kind.__name__: kind.__base__.__name__ for kind in tree()[1:] if kind.__base__}


@pytest.mark.parametrize("kind", tree())
def test_every_error_says_what_it_means(kind: type[GatewayError]) -> None:
    assert getdoc(kind)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.RequestError, 400),
        (errors.PayloadTooLarge, 413),
        (errors.UnsupportedEncoding, 415),
        (errors.Unauthenticated, 401),
        (errors.Forbidden, 403),
        (errors.RateLimited, 429),
        (errors.ModelNotFound, 404),
        (errors.VersionNotFound, 404),
        (errors.Conflict, 409),
        (errors.QueueFull, 429),
        (errors.ModelNotReady, 503),
        (errors.InstanceDied, 503),
        (errors.DeadlineExceeded, 504),
        (errors.OutOfMemory, 507),
        (errors.InferenceFailed, 500),
        (errors.InputRefused, 400),
        (errors.NotSupported, 501),
        (errors.ProtocolError, 500),
        (errors.GatewayError, 500),
    ],
)
def test_an_error_has_the_status_that_the_design_gives_it(kind: type[GatewayError], status: int) -> None:
    assert status_of(kind("no")) == status
    assert error_body(kind('say "no"')) == b'{"error":"say \\"no\\""}'


def test_only_what_passes_says_when_to_come_back() -> None:
    coming_back = {kind for kind in tree() if "retry-after" in error_headers(kind("no"))}
    assert coming_back == {errors.QueueFull, errors.RateLimited}


def test_who_needs_a_key_hears_how_to_send_it() -> None:
    assert error_headers(errors.Unauthenticated("no")) == {"www-authenticate": "Bearer"}


def test_an_error_that_is_not_ours_shows_nothing_of_itself() -> None:
    error = RuntimeError("/etc/secret is broken")
    assert status_of(error) == 500
    assert error_body(error) == b'{"error":"internal error"}'
