"""`gateway load` and `gateway unload`: what a running gateway has in memory."""

from contextlib import nullcontext

from gateway.commands.client import DEFAULT_URL, AsJson, CaCert, Client, Insecure, Key, ModelName, Timeout, Url, segment
from gateway.commands.printing import console, plain, print_json


def load(
    model: ModelName,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    ca_cert: CaCert = None,
    insecure: Insecure = False,
    timeout: Timeout = 600.0,
) -> None:
    """Load a model from the store, again if it is loaded, and wait until it is ready.

    Exit code 1 and the reason if it fails.

    Example: `gateway load digits_torch`
    """
    with Client(url, key, ca_cert, insecure=insecure, timeout=timeout) as client:
        _control(client, model, "load", as_json=as_json)


def unload(
    model: ModelName,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    ca_cert: CaCert = None,
    insecure: Insecure = False,
    timeout: Timeout = 600.0,
) -> None:
    """Unload a model: its requests under way are answered, then its processes end.

    It stays unloaded until it is loaded again, whatever happens in the model store.

    Example: `gateway unload digits_torch`
    """
    with Client(url, key, ca_cert, insecure=insecure, timeout=timeout) as client:
        _control(client, model, "unload", as_json=as_json)


def _control(client: Client, model: str, action: str, *, as_json: bool) -> None:
    screen = console(stderr=True)
    waiting = screen.status(f"{action}ing {plain(model)} …") if screen.is_terminal else nullcontext()
    with waiting, client.knowing(model):
        client.json("POST", f"/v2/repository/models/{segment(model, 'a model')}/{action}", {})
    states = [
        {key: each.get(key, "") for key in ("name", "version", "state", "reason")}
        for each in client.index()
        if each["name"] == model
    ]
    if as_json:
        print_json(states)
        return
    for each in states:
        reason = f": {each['reason']}" if each["reason"] else ""
        console().print(plain(f"{each['name']}/{each['version']} {each['state']}{reason}"))
