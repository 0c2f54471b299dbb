"""`gateway serve`: serve every model in the model store."""

import asyncio
import contextlib
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway import __version__


def serve(
    model_store: Annotated[Path | None, typer.Option(help="Directory of models.  [default: model_store]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.  [default: 8000]")] = None,
    management_address: Annotated[
        str | None, typer.Option(help="TorchServe's management calls, or off.  [default: 127.0.0.1:8081]")
    ] = None,
    metrics_address: Annotated[
        str | None, typer.Option(help="Metrics alone, or off.  [default: 127.0.0.1:8082]")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="HTTP worker processes.  [default: 1]")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest request body.  [default: 67108864]")] = None,
    request_timeout: Annotated[float | None, typer.Option(help="Seconds a request may take.  [default: 60]")] = None,
    strict_readiness: Annotated[
        bool | None, typer.Option("--strict-readiness", help="Ready only while every model is, instead of any.")
    ] = None,
    load_timeout: Annotated[
        float | None, typer.Option(help="Seconds a model may take to load.  [default: 120]")
    ] = None,
    keep_alive_seconds: Annotated[int | None, typer.Option(help="Idle connections are closed.  [default: 5]")] = None,
    drain_timeout: Annotated[
        float | None, typer.Option(help="Seconds for requests under way at the end.  [default: 30]")
    ] = None,
    memory_budget: Annotated[
        str | None, typer.Option(help="Memory of all models, such as 8GB.  [default: 80 % of what is free]")
    ] = None,
    gpu_memory_budget: Annotated[str | None, typer.Option(help="The same for each GPU.")] = None,
    sandbox: Annotated[str | None, typer.Option(help="auto, require or off.  [default: auto]")] = None,
    torch_library: Annotated[
        list[str] | None, typer.Option(help="A package with operators for PyTorch, such as torchvision; repeatable.")
    ] = None,
    tensorflow_library: Annotated[
        list[str] | None, typer.Option(help="The same for TensorFlow, such as tensorflow_text; repeatable.")
    ] = None,
    watch: Annotated[str | None, typer.Option(help="The model store: auto, poll or off.  [default: auto]")] = None,
    settle_seconds: Annotated[
        float | None, typer.Option(help="New files must be left alone so long.  [default: 1]")
    ] = None,
    state_directory: Annotated[Path | None, typer.Option(help="Where measured footprints are kept.")] = None,
    compare_report: Annotated[
        Path | None, typer.Option(help="Folder of `gateway compare`, for the console.  [default: compare-report]")
    ] = None,
    keys_file: Annotated[Path | None, typer.Option(help="API keys, as `gateway keys add` writes them.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM); makes it HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's private key (PEM).")] = None,
    cors_origins: Annotated[
        list[str] | None, typer.Option(help="A web page's origin that may call, or *; repeatable.")
    ] = None,
    server_name: Annotated[
        str | None, typer.Option(help="What GET /v2 says; some clients insist on triton.  [default: gateway]")
    ] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log", help="A line of JSON for each request on stdout.")
    ] = None,
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="OpenTelemetry collector, such as http://127.0.0.1:4318; spans go there.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON when it serves: addresses and models.")
    ] = False,
) -> None:
    """Serve every model in the model store.

    Each option can also be set as `GATEWAY_<OPTION>` in the environment, or in gateway.yaml.
    """
    given = {name: value for name, value in locals().items() if name != "as_json"}
    # Imported here so that --help and a wrong option answer at once.
    from rich.console import Console  # noqa: PLC0415

    from gateway.errors import ConfigError  # noqa: PLC0415
    from gateway.lifecycle.manager import Manager  # noqa: PLC0415
    from gateway.listeners import listen  # noqa: PLC0415
    from gateway.precautions import check, raise_open_files  # noqa: PLC0415
    from gateway.settings import read_settings  # noqa: PLC0415
    from gateway.startup import announce  # noqa: PLC0415
    from gateway.supervisor import supervise  # noqa: PLC0415

    console = Console(stderr=as_json)
    console.width = max(console.width, 120)  # a table cut off at 80 columns hides what it is for
    try:
        settings = read_settings(**given)
        check(settings)
        listeners = listen(settings)
    except ConfigError as error:
        print(f"gateway: {error.message}", file=sys.stderr)  # noqa: T201 - the command line's own voice
        raise typer.Exit(2) from None
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO)

    def say(text: str) -> None:
        # Who reads this may go away, as `head` does; the server goes on.
        with contextlib.suppress(OSError, SystemExit):
            console.print(text, highlight=False)

    def show(manager: Manager) -> None:
        urls = {name: listeners.url(name) for name in listeners.sockets}
        with contextlib.suppress(OSError, SystemExit):
            announce(console, urls, list(manager.versions.values()), manager.residency.account, as_json=as_json)

    say(f"gateway {__version__}: loading {settings.model_store}")
    raise_open_files()
    code = asyncio.run(
        supervise(
            settings,
            listeners,
            on_settled=lambda version: say(f"  {version.title}: {version.state.value}"),
            on_started=show,
        )
    )
    raise typer.Exit(code)
