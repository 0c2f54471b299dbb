"""The documentation pages work without the internet and describe the call that matters."""

import re
from typing import Any
from urllib.parse import urljoin, urlsplit

CONTENT_NETWORKS = re.compile(r"jsdelivr|unpkg\.com|cdnjs|googleapis|gstatic|tiangolo|cloudflare")


def assets(page: str) -> list[str]:
    return re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)


def test_the_page_and_everything_it_loads_come_from_the_gateway_itself(gateway: Any) -> None:
    page = gateway.http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"https?://", page.text), "the page names another host"
    names = assets(page.text)
    assert any(name.endswith(".js") for name in names)
    assert any(name.endswith(".css") for name in names)
    for name in names:
        url = urlsplit(urljoin(f"{gateway.url}/docs", name))
        assert url.netloc == urlsplit(gateway.url).netloc
        asset = gateway.http.get(url.path)
        assert asset.status_code == 200, name
        assert len(asset.content) > 500, name
        if not name.endswith((".png", ".ico")):
            assert not CONTENT_NETWORKS.search(asset.text), name
        if name.endswith(".css"):
            assert not re.search(r"@import|url\(['\"]?(?:https?:)?//", asset.text), name


def test_the_page_asks_for_the_openapi_document_that_is_served(gateway: Any) -> None:
    (place,) = re.findall(r"url: '([^']+)'", gateway.http.get("/docs").text)
    document = gateway.http.get(place)
    assert document.status_code == 200
    assert document.json()["openapi"].startswith("3.")
    assert not document.json().get("servers")


def test_inference_is_documented_with_its_request_its_response_and_its_errors(gateway: Any) -> None:
    paths = gateway.http.get("/openapi.json").json()["paths"]
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        operation = paths[path]["post"]
        request = operation["requestBody"]["content"]["application/json"]
        assert set(request["schema"]["properties"]) == {"id", "parameters", "inputs", "outputs"}
        assert request["example"]["inputs"]
        answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert {"model_name", "model_version", "outputs"} <= set(answer["properties"])
        assert {"400", "404", "413", "500", "503"} <= set(operation["responses"])
        headers = [each["name"] for each in operation["parameters"] if each["in"] == "header"]
        assert headers == ["Inference-Header-Content-Length", "X-Request-Timeout", "X-Envoy-Expected-Rq-Timeout-Ms"]


def test_every_documented_get_without_a_parameter_answers(gateway: Any) -> None:
    paths = gateway.http.get("/openapi.json").json()["paths"]
    plain = [path for path, operations in paths.items() if "get" in operations and "{" not in path]
    assert {"/v2", "/v2/health/live", "/v2/health/ready", "/metrics"} <= set(plain)
    for path in plain:
        assert gateway.http.get(path).status_code == 200, path


def test_the_request_shown_as_an_example_is_answered_by_a_shipped_model(gateway: Any) -> None:
    operation = gateway.http.get("/openapi.json").json()["paths"]["/v2/models/{model}/infer"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert gateway.http.post("/v2/models/digits_torch/infer", json=example).status_code == 200
