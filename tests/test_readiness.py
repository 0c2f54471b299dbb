"""What health probes are told by a gateway whose models fail, come and go."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_server_with_failed_models_only_is_alive_and_not_ready_and_strictly_ready_when_every_model_is(
    start_gateway: Callable[..., Any], built: Path, helpers: Any
) -> None:
    def probes() -> list[int]:
        return [own.http.get(path).status_code for path in ("/v2/health/live", "/v2/health/ready", "/ping")]

    with start_gateway(["no_archive"], "--strict-readiness") as own:
        assert own.versions() == {"no_archive": "FAILED"}
        assert probes() == [200, 503, 500]
        assert own.http.get("/v2/health/ready").json() == {"ready": False}
        assert own.http.get("/ping").json() == {"status": "Unhealthy"}
        store = own.log.parent / "store"
        shutil.copytree(built / "mlp", store / "mlp")
        helpers.until(lambda: own.versions().get("mlp") == "READY", 20)
        assert probes() == [200, 503, 200], "one model has failed still"
        shutil.rmtree(store / "no_archive")
        helpers.until(lambda: probes() == [200, 200, 200], 20)
        assert own.http.post("/v2/repository/models/mlp/unload").status_code == 200
        helpers.until(lambda: probes() == [200, 503, 200], 20)
