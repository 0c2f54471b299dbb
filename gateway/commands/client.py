"""What the commands that ask a running gateway share: their options, one HTTP client, and errors in one line."""

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import quote, urlsplit

import typer

from gateway.errors import CallFailed, RequestError

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_SECONDS = 5.0
COMPLETION_SECONDS = 0.5
"""Who presses the tab key does not wait longer for a server that does not answer."""
LONGEST_SECONDS = 86400.0
_LONGEST_ERROR = 1000
_HARMLESS = re.compile(r"[\w.@+-]+")
"""Names that no shell can take for more than a name."""


def complete_models(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names of the models of the running gateway, for the shell."""
    given = ctx.params
    try:
        with Client(
            given.get("url") or os.environ.get("GATEWAY_URL") or DEFAULT_URL,
            given.get("key") or os.environ.get("GATEWAY_API_KEY"),
            given.get("ca_cert"),
            insecure=bool(given.get("insecure")),
            timeout=COMPLETION_SECONDS,
        ) as client:
            return [name for name in client.model_names() if name.startswith(incomplete) and _HARMLESS.fullmatch(name)]
    except (CallFailed, RequestError):
        return []


ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.", autocompletion=complete_models)]
VersionName = Annotated[str | None, typer.Option("--version", help="Version or label.  [default: the one that serves]")]
SignatureName = Annotated[str | None, typer.Option("--signature", help="Signature, where the model has several.")]
_PANEL = "The server"
Url = Annotated[str, typer.Option("--url", envvar="GATEWAY_URL", help="Where the gateway is.", rich_help_panel=_PANEL)]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="GATEWAY_API_KEY", help="API key, if it wants one.", rich_help_panel=_PANEL),
]
CaCert = Annotated[
    Path | None, typer.Option("--ca-cert", help="Certificate (PEM) to trust for https.", rich_help_panel=_PANEL)
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Trust any certificate.", rich_help_panel=_PANEL, show_default=False)
]
Timeout = Annotated[
    float,
    typer.Option("--timeout", min=0.1, max=LONGEST_SECONDS, help="Seconds to wait.", rich_help_panel=_PANEL),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.", show_default=False)]


class Client:
    """One gateway, asked directly: no proxy of the environment is between.

    RequestError if the options make no sense. Whatever it is asked raises CallFailed, whose message says what to do,
    if nothing answers or the answer is an error.
    """

    def __init__(self, url: str, key: str | None, ca_cert: Path | None, *, insecure: bool, timeout: float) -> None:
        import httpx  # noqa: PLC0415 - takes longer than all else that --help and completion of options need

        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.key = key
        self.ca_cert = ca_cert
        self.insecure = insecure
        self.timeout = timeout
        if key is not None and not (key.isascii() and key.isprintable()):
            raise RequestError("the API key has characters that no key has; is it complete, and nothing else with it?")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            parsed = httpx.URL(self.url)
            sound = parsed.scheme in ("http", "https") and parsed.host and not (parsed.query or parsed.fragment)
        except (httpx.InvalidURL, UnicodeError):  # idna.IDNAError is one
            sound = False
        if not sound:
            raise RequestError(f"--url must be like {DEFAULT_URL}, not '{url:.100}'")
        self._http = httpx.Client(
            headers=self.headers,
            verify=self.tls() or False,  # without https there is nothing to verify, and a context takes 20 ms to make
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            trust_env=False,
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    def tls(self) -> ssl.SSLContext | None:
        """How the server's certificate is judged; None if the URL is not https. RequestError for a bad --ca-cert."""
        if not self.url.startswith("https:"):
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_cert)
        except OSError as error:  # ssl.SSLError is one
            raise RequestError(f"--ca-cert {self.ca_cert} cannot be read: {error.strerror or error}") from None
        if self.insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    # Asking

    def send(
        self, method: str, path: str, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> "httpx.Response":
        """Any request; the answer is a success. RequestError if the URL's host cannot be one."""
        import httpx  # noqa: PLC0415 - as above

        try:
            response = self._http.request(method, self.url + path, content=content, headers=headers)
        except httpx.ConnectError as error:
            raise CallFailed(self._unreachable(error)) from None
        except httpx.TimeoutException:
            raise CallFailed(f"{self.url} did not answer within {self.timeout:g} s; --timeout waits longer") from None
        except UnicodeError:  # the codec that makes DNS names of hosts
            raise RequestError(f"--url must be like {DEFAULT_URL}; '{self.url:.100}' has no name of a host") from None
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise CallFailed(f"{self.url} does not speak HTTP as expected: {said}") from None
        if response.is_success:
            return response
        raise CallFailed(_refusal(response), response.status_code)

    def _unreachable(self, error: Exception) -> str:
        if "certificate" in str(error).lower():
            return f"the certificate of {self.url} is not trusted ({error}); --ca-cert names one that is to be"
        if "ssl" in str(error).lower():
            return f"{self.url} does not speak TLS as expected ({error}); is it an http:// one?"
        return f"nothing answers at {self.url}; start one with `gateway serve` or give --url"

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """A request with JSON in and out."""
        import orjson  # noqa: PLC0415 - as above

        response = self.send(method, path, None if body is None else orjson.dumps(body))
        try:
            return orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise CallFailed(f"{self.url} answers, but not as a gateway does") from None

    def index(self) -> list[dict[str, Any]]:
        """Every model version, with what the gateway says of it beyond its state under `parameters`."""
        return self.objects("POST", "/v2/repository/index", {"parameters": {"details": True}})

    def objects(self, method: str, path: str, body: Any = None) -> list[dict[str, Any]]:
        """A request whose answer is a list of JSON objects."""
        found = self.json(method, path, body)
        if not isinstance(found, list) or not all(isinstance(each, dict) and "name" in each for each in found):
            raise CallFailed(f"{self.url} answers, but not as a gateway does")
        return found

    def model_names(self) -> list[str]:
        """Sorted."""
        return sorted({str(each["name"]) for each in self.index()})

    def metadata(self, model: str, version: str | None = None) -> dict[str, Any]:
        """What a model takes and gives. A COLD one is loaded for that."""
        with self.knowing(model):
            found = self.json("GET", model_path(model, version))
        if not isinstance(found, dict):
            raise CallFailed(f"{self.url} answers, but not as a gateway does")
        return found

    @contextmanager
    def knowing(self, model: str) -> Iterator[None]:
        """What is asked in here is about a model: if there is none of that name, say which one could be meant."""
        try:
            yield
        except CallFailed as error:
            if error.status == 404 and (text := self._which(model)):
                raise CallFailed(text, 404) from None
            raise

    def _which(self, model: str) -> str | None:
        try:
            names = self.model_names()
        except CallFailed:
            return None
        if model in names:
            return None  # then a version is unknown, of which the server's own words tell
        return f"no model '{model}'; {did_you_mean(model, names) or '`gateway ls` lists what there is'}"


def did_you_mean(name: str, known: list[str]) -> str:
    """The question that ends a sentence about an unknown name; empty if there is nothing like it."""
    from difflib import get_close_matches  # noqa: PLC0415 - for mistakes only

    close = get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def model_path(model: str, version: str | None = None) -> str:
    """The path of a model, or of one version of it; RequestError for what is no name of one."""
    path = f"/v2/models/{segment(model, 'a model')}"
    return f"{path}/versions/{segment(version, 'a version')}" if version is not None else path


def segment(name: str, what: str) -> str:
    """A name as it stands in a path; RequestError for '', '.' and '..', which would lead to another path."""
    if name in ("", ".", ".."):
        raise RequestError(f"'{name}' is no name of {what}")
    return quote(name, safe="", errors="surrogateescape")


def _refusal(response: "httpx.Response") -> str:
    """What the server says is wrong, in whichever dialect."""
    try:
        body = response.json()
    except ValueError:
        body = None
    said = next((str(body[key]) for key in ("error", "message") if body.get(key)), "") if isinstance(body, dict) else ""
    text = said[:_LONGEST_ERROR] or f"{response.url} answers {response.status_code} {response.reason_phrase}"
    if response.status_code == 401:
        return f"{text} (--key or GATEWAY_API_KEY gives a key)"
    return text
