"""`make dashboards`: writes Grafana's dashboards as JSON, into the folder `dashboards` or the one that is named."""

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from memory import memory
from model import model
from overview import overview


def rendered(builder: Dashboard) -> str:
    """A dashboard as JSON, its panels numbered."""
    dashboard: dict[str, Any] = json.loads(json.dumps(builder.build(), cls=JSONEncoder))
    for number, panel in enumerate(dashboard["panels"], start=1):
        panel["id"] = number
    for note in dashboard.get("annotations", {}).get("list", []):
        # The SDK knows annotations of Grafana's own only; Prometheus' are queries, with a title made of labels.
        note["target"] = {"expr": note["expr"], "refId": "Anno", "interval": "5s"}
        note["titleFormat"] = f"{{{{model}}}}/{{{{version}}}} {note['name']}"
        note["tagKeys"] = "version"
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all of them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards"
    folder.mkdir(parents=True, exist_ok=True)
    for name, builder in (("overview", overview()), ("model", model()), ("memory", memory())):
        (folder / f"{name}.json").write_text(rendered(builder))
        print(folder / f"{name}.json")


if __name__ == "__main__":
    main()
