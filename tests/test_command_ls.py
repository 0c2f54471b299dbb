import json
import subprocess
from typing import Any

from gateway.commands.ls import counted, memory_text

KEYS = {
    "name", "version", "state", "reason", "platform", "framework", "labels", "devices", "max_batch_size",
    "memory_bytes", "requests",
}  # fmt: skip


def test_json_is_a_list_of_versions_and_nothing_else(gateway: Any) -> None:
    gateway.infer("digits_torch", {"inputs": []})
    done = gateway.command("ls", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert all(set(each) == KEYS for each in found)
    assert [each["name"] for each in found] == sorted(each["name"] for each in found)
    by_name = {each["name"]: each for each in found}
    digits = by_name["digits_torch"]
    assert (digits["version"], digits["state"], digits["devices"]) == ("1", "READY", ["cpu"])
    assert (digits["platform"], digits["framework"]) == ("pytorch_torchscript", "pytorch")
    assert 1e6 < digits["memory_bytes"]["private"] < 1e9
    assert digits["requests"] == gateway.metrics().of("gateway_requests_total", model="digits_torch") >= 1
    assert by_name["no_archive"]["state"] == "FAILED"
    assert by_name["no_archive"]["memory_bytes"] == {}
    assert by_name["no_archive"]["reason"]


def test_the_table_is_plain_text_where_it_is_not_read_on_a_terminal(gateway: Any) -> None:
    done = gateway.command("ls", COLUMNS="40")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["MODEL", "VERSION", "STATE", "PLATFORM", "DEVICE", "MEMORY", "REQUESTS", "LABELS"]
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["digits_torch"][1:5] == ["1", "READY", "pytorch_torchscript", "cpu"]
    assert rows["no_archive"][2] == "FAILED"
    assert any(line.startswith("no_archive/1 FAILED: ") for line in lines)
    assert "\x1b" not in done.stdout


def test_who_reads_no_further_gets_no_traceback(gateway: Any, helpers: Any) -> None:
    script = f"{{ {helpers.program} ls --url {gateway.url}; echo code $? >&2; }} | true"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == "code 1\n"


def test_watching_is_for_people(gateway: Any) -> None:
    done = gateway.command("ls", "--watch", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--watch" in done.stderr


def test_amounts_are_written_for_people() -> None:
    assert memory_text(None) == memory_text({}) == ""
    assert memory_text({"private": 8_200_000}) == "8.2 MB"
    assert memory_text({"private": 8_200_000, "gpu": 3e8}) == "8.2 MB + 300.0 MB GPU"
    assert counted(["cpu"]) == "cpu"
    assert counted(["cuda:0", "cuda:0", "cpu"]) == "cuda:0 x2 cpu"
    assert counted([]) == ""
