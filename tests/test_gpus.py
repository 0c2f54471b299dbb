"""The real nvidia-ml-py over a stand-in for the driver's library (fixtures/fake_nvml.c), and the gateway over both."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.nodes.gpus import Found, gpu_footprint, visible

FIXTURES = Path(__file__).parent / "fixtures"
GIB = 1 << 30
WHOLE, SLICED, SMALL, LARGE = "GPU-aaaa-1", "GPU-bbbb-2", "MIG-cccc-3", "MIG-dddd-4"
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, TIMEOUT, LOST = 3, 4, 9, 10, 15
MEMORY, PROCESSES = "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses_v3"
NO_PROCESS = (1 << 22) + 1  # above the most that Linux gives
# Two GPUs; the second is in MIG mode with two slices, in the first and the fourth of its seven places.
MACHINE = f"""
gpu {WHOLE} {80 * GIB} {60 * GIB} 0
gpu {SLICED} {40 * GIB} {39 * GIB} 1
mig 1 0 {SMALL} {5 * GIB} {4 * GIB} 7 0
mig 1 3 {LARGE} {20 * GIB} {15 * GIB} 1 0
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles the stand-in and gives the directory that holds it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the stand-in for libnvidia-ml.so.1")
    built: dict[tuple[str, ...], Path] = {}

    def build(*options: str) -> Path:
        if options not in built:
            directory = built[options] = tmp_path_factory.mktemp("nvml")
            output = directory / "libnvidia-ml.so.1"
            command = [compiler, "-Wall", "-Werror", "-shared", "-fPIC", *options, "-o", output]
            subprocess.run([*command, FIXTURES / "fake_nvml.c"], check=True, timeout=60)
        return built[options]

    return build


class Asked:
    """A process that asks NVML for us; `machine` is the text that the library answers from."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.process = subprocess.Popen(
            [sys.executable, FIXTURES / "ask_gpus.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(file)},
        )
        self.log: list[str] = []
        """Warnings of the last question."""

    def machine(self, *texts: str) -> None:
        self._file.write_text("\n".join(texts) + "\n")

    def ask(self, what: str, argument: Any = None) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([what, argument]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the process that asks ended with code {self.process.wait(5)}"
        answer, self.log = json.loads(line)
        return answer

    def open(self, *texts: str, container: bool = False, **environment: str) -> list[str]:
        """Open NVML on this machine; the names that are found."""
        self.machine(*texts)
        self.ask("open", {"environment": environment, "container": container})
        log = self.log
        names = [device["name"] for device in self.ask("devices")]
        self.log = log
        return names

    def processes(self) -> dict[tuple[int, str], int]:
        return {(pid, device): used for pid, device, used in self.ask("process_memory")}

    def end(self) -> None:
        self.process.communicate(timeout=10)
        assert self.process.returncode == 0


@pytest.fixture(scope="session")
def process(library: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    asked = Asked(library(), tmp_path_factory.mktemp("machine") / "state")
    yield asked
    asked.end()


@pytest.fixture
def nvml(process: Asked) -> Iterator[Asked]:
    yield process
    process.ask("close")


def test_a_gpu_in_mig_mode_is_found_as_its_slices_by_their_own_uuids(nvml: Asked) -> None:
    assert nvml.open(MACHINE) == ["cuda:0", "cuda:1", "cuda:2"]
    assert nvml.ask("devices") == [
        {"name": "cuda:0", "visible": WHOLE, "total": 80 * GIB},
        {"name": "cuda:1", "visible": SMALL, "total": 5 * GIB},
        {"name": "cuda:2", "visible": LARGE, "total": 20 * GIB},
    ]
    assert nvml.log == []


def test_mig_mode_without_slices_is_no_device_and_said(nvml: Asked) -> None:
    assert nvml.open(f"gpu {SLICED} 10 10 1", f"gpu {WHOLE} 10 10 0") == ["cuda:0"]
    (line,) = nvml.log
    assert "GPU 0" in line
    assert "MIG mode" in line
    assert [device["visible"] for device in nvml.ask("devices")] == [WHOLE]


def test_a_gpu_too_old_for_mig_is_a_whole_gpu(nvml: Asked) -> None:
    assert nvml.open(f"gpu {WHOLE} 10 10 -1") == ["cuda:0"]
    assert nvml.log == []


def test_memory_is_measured_anew_each_time(nvml: Asked) -> None:
    nvml.open(MACHINE)
    assert nvml.ask("memory") == {
        "cuda:0": {"total": 80 * GIB, "free": 60 * GIB, "used": 20 * GIB},
        "cuda:1": {"total": 5 * GIB, "free": 4 * GIB, "used": 1 * GIB},
        "cuda:2": {"total": 20 * GIB, "free": 15 * GIB, "used": 5 * GIB},
    }
    nvml.machine(MACHINE.replace(f"{60 * GIB}", f"{10 * GIB}"))
    assert nvml.ask("memory")["cuda:0"] == {"total": 80 * GIB, "free": 10 * GIB, "used": 70 * GIB}


def test_memory_of_processes_is_told_by_process_and_device(nvml: Asked) -> None:
    nvml.open(MACHINE, "process 0 11 700 -1 -1", "process 0 12 800 -1 -1", "process 1 11 50 7 0", "process 1 13 60 1 0")
    assert nvml.processes() == {(11, "cuda:0"): 700, (12, "cuda:0"): 800, (11, "cuda:1"): 50, (13, "cuda:2"): 60}


def test_slices_that_share_a_gpu_instance_keep_their_processes_apart(nvml: Asked) -> None:
    nvml.open(
        f"gpu {SLICED} 40 40 1",
        f"mig 0 0 {SMALL} 20 20 2 0",
        f"mig 0 1 {LARGE} 20 20 2 1",
        "process 0 11 5 2 0",
        "process 0 12 6 2 1",
    )
    assert nvml.processes() == {(11, "cuda:0"): 5, (12, "cuda:1"): 6}


def test_what_the_driver_does_not_tell_of_a_process_is_absent(nvml: Asked) -> None:
    nvml.open(MACHINE, "process 0 11 -1 -1 -1", "process 0 12 800 -1 -1", f"fail {PROCESSES} {SMALL} {NO_PERMISSION}")
    assert nvml.processes() == {(12, "cuda:0"): 800}
    (line,) = nvml.log
    assert "cuda:1" in line
    assert "Permissions" in line


def test_a_list_of_the_host_s_process_ids_is_not_believed_in_a_container(nvml: Asked) -> None:
    pids = [f"process 0 {os.getpid()} 700 -1 -1", f"process 1 {os.getpid()} 50 7 0"]
    nvml.open(MACHINE, *pids, container=True)
    assert nvml.processes() == {(os.getpid(), "cuda:0"): 700, (os.getpid(), "cuda:1"): 50}
    nvml.machine(MACHINE, *pids, f"process 0 {NO_PROCESS} 800 -1 -1")
    assert nvml.processes() == {(os.getpid(), "cuda:1"): 50}


def test_a_process_that_has_ended_harms_no_figure_outside_containers(nvml: Asked) -> None:
    nvml.open(MACHINE, f"process 0 {os.getpid()} 700 -1 -1", f"process 0 {NO_PROCESS} 800 -1 -1")
    assert nvml.processes()[os.getpid(), "cuda:0"] == 700


def test_a_lost_gpu_is_offered_no_more_and_the_others_keep_their_names(nvml: Asked) -> None:
    nvml.open(MACHINE, "process 0 11 700 -1 -1", "process 1 11 50 7 0")
    nvml.machine(MACHINE, f"fail {MEMORY} {WHOLE} {LOST}", "process 0 11 700 -1 -1", "process 1 11 50 7 0")
    assert set(nvml.ask("memory")) == {"cuda:1", "cuda:2"}
    (line,) = nvml.log
    assert "cuda:0 is lost" in line
    assert [device["name"] for device in nvml.ask("devices")] == ["cuda:1", "cuda:2"]
    assert nvml.processes() == {(11, "cuda:1"): 50}
    nvml.machine(MACHINE)
    assert set(nvml.ask("memory")) == {"cuda:1", "cuda:2"}
    assert nvml.log == []


def test_a_loss_is_noticed_by_the_question_for_processes_too(nvml: Asked) -> None:
    nvml.open(MACHINE)
    nvml.machine(MACHINE, f"fail {PROCESSES} {LARGE} {LOST}")
    assert nvml.processes() == {}
    assert "cuda:2 is lost" in nvml.log[0]
    assert [device["name"] for device in nvml.ask("devices")] == ["cuda:0", "cuda:1"]


def test_a_destroyed_slice_is_lost(nvml: Asked) -> None:
    nvml.open(MACHINE)
    nvml.machine(*(line for line in MACHINE.splitlines() if LARGE not in line))
    assert set(nvml.ask("memory")) == {"cuda:0", "cuda:1"}
    assert "cuda:2 is lost" in nvml.log[0]


def test_a_gpu_that_does_not_answer_in_time_is_without_figures_until_it_does(nvml: Asked) -> None:
    nvml.open(MACHINE)
    for _ in range(2):
        nvml.machine(MACHINE, f"fail {MEMORY} {WHOLE} {TIMEOUT}")
        assert set(nvml.ask("memory")) == {"cuda:1", "cuda:2"}
        assert ["cuda:0" in line and "Timeout" in line for line in nvml.log] == [True]
        assert nvml.ask("memory").keys() == {"cuda:1", "cuda:2"}
        assert nvml.log == [], "said twice"
        assert len(nvml.ask("devices")) == 3
        nvml.machine(MACHINE)
        assert set(nvml.ask("memory")) == {"cuda:0", "cuda:1", "cuda:2"}


def test_a_gpu_that_never_tells_its_memory_can_be_used(nvml: Asked) -> None:
    fail = f"fail {MEMORY} {WHOLE} {NOT_SUPPORTED}"
    assert nvml.open(MACHINE, fail) == ["cuda:0", "cuda:1", "cuda:2"]
    assert nvml.ask("devices")[0] == {"name": "cuda:0", "visible": WHOLE, "total": 0}
    assert set(nvml.ask("memory")) == {"cuda:1", "cuda:2"}


def test_a_gpu_that_is_lost_at_the_start_hides_only_itself(nvml: Asked) -> None:
    for function in ("nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID", MEMORY):
        nvml.open(MACHINE, f"fail {function} {WHOLE} {LOST}")
        assert [device["visible"] for device in nvml.ask("devices")] == [SMALL, LARGE], function
        nvml.ask("close")
        nvml.open(MACHINE, f"fail {function} {WHOLE} {LOST}")
        assert "GPU 0 is not used" in nvml.log[0]
        nvml.ask("close")


def test_a_slice_that_is_not_for_us_hides_only_itself(nvml: Asked) -> None:
    fail = f"fail nvmlDeviceGetMigDeviceHandleByIndex {SMALL} {NO_PERMISSION}"
    assert nvml.open(MACHINE, fail) == ["cuda:0", "cuda:1"]
    assert nvml.ask("devices")[1]["visible"] == LARGE


def test_a_driver_that_does_not_work_means_no_gpus_and_one_line(nvml: Asked) -> None:
    for code, words in ((DRIVER_NOT_LOADED, "Driver Not Loaded"), (77, "Error 77")):
        assert nvml.open(MACHINE, f"fail nvmlInitWithFlags - {code}") == []
        (line,) = nvml.log
        assert words in line
        assert nvml.ask("memory") == {}
        assert nvml.processes() == {}
    assert nvml.open(MACHINE, f"fail nvmlDeviceGetCount_v2 - {TIMEOUT}") == []
    assert len(nvml.log) == 1


def test_after_the_end_there_is_nothing_and_ending_twice_is_fine(nvml: Asked) -> None:
    nvml.open(MACHINE)
    nvml.ask("close")
    nvml.ask("close")
    assert nvml.log == []
    assert nvml.ask("devices") == []
    assert nvml.ask("memory") == {}


def test_a_driver_from_before_mig_has_whole_gpus(library: Callable[..., Path], tmp_path: Path) -> None:
    asked = Asked(library("-DBEFORE_MIG"), tmp_path / "state")
    assert asked.open(MACHINE) == ["cuda:0", "cuda:1"]
    assert [device["visible"] for device in asked.ask("devices")] == [WHOLE, SLICED]
    assert asked.log == []
    asked.end()


def test_without_the_driver_s_library_there_are_no_gpus_and_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")  # found before one that the machine may have
    asked = Asked(tmp_path, tmp_path / "state")
    assert asked.open(MACHINE) == []
    assert asked.log == []
    assert asked.ask("memory") == {}
    asked.end()


# Restriction by the environment


def test_the_environment_restricts_what_is_found(nvml: Asked) -> None:
    nvml.open(MACHINE, CUDA_VISIBLE_DEVICES="1")
    assert [(each["name"], each["visible"]) for each in nvml.ask("devices")] == [("cuda:0", SMALL), ("cuda:1", LARGE)]
    assert set(nvml.ask("memory")) == {"cuda:0", "cuda:1"}


FOUND = [
    Found(WHOLE, 0, WHOLE),
    Found(SMALL, 1, SLICED),
    Found(LARGE, 1, SLICED),
    Found("GPU-aabb-5", 2, "GPU-aabb-5"),
]
ALL = [each.uuid for each in FOUND]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", [WHOLE]),
        ("2,0", ["GPU-aabb-5", WHOLE]),
        ("0, 1", [WHOLE, SMALL, LARGE]),
        ("0,-1,2", [WHOLE]),
        ("0,9,2", [WHOLE]),
        ("0,0", [WHOLE]),
        (WHOLE, [WHOLE]),
        ("GPU-aaa", [WHOLE]),
        ("GPU-aa", []),
        (f"{LARGE},{WHOLE}", [LARGE, WHOLE]),
        (SLICED, [SMALL, LARGE]),
        ("MIG-", []),
        ("²", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(value: str, expected: list[str]) -> None:
    assert [each.uuid for each in visible(FOUND, {"CUDA_VISIBLE_DEVICES": value})] == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("none", []),
        (LARGE, [LARGE]),
        (f"{LARGE},{WHOLE}", [WHOLE, LARGE]),
        ("GPU-unknown", []),
        ("all", ALL),
        ("void", ALL),
        ("", ALL),
        ("3", ALL),
        ("1:0", ALL),
    ],
)
def test_of_nvidia_visible_devices_only_uuids_and_none_count(value: str, expected: list[str]) -> None:
    assert [each.uuid for each in visible(FOUND, {"NVIDIA_VISIBLE_DEVICES": value})] == expected


def test_both_variables_must_allow_a_device() -> None:
    both = {"NVIDIA_VISIBLE_DEVICES": f"{WHOLE},{LARGE}", "CUDA_VISIBLE_DEVICES": "2,1,0"}
    assert [each.uuid for each in visible(FOUND, both)] == [LARGE, WHOLE]


@given(st.lists(st.sampled_from([*ALL, SLICED, "0", "1", "2", "3", "-1", "GPU-", " 0 ", "x"])), st.booleans())
def test_no_environment_makes_a_device_appear_twice_or_out_of_nothing(entries: list[str], container: bool) -> None:
    value = ",".join(entries)
    found = visible(FOUND, {("NVIDIA" if container else "CUDA") + "_VISIBLE_DEVICES": value})
    assert len({each.uuid for each in found}) == len(found)
    assert set(found) <= set(FOUND)


# Footprints


def test_a_footprint_is_what_nvml_says_else_what_the_framework_says() -> None:
    nvml = {(7, "cuda:1"): 900}
    assert gpu_footprint(7, "cuda:1", nvml, 500) == (900, "nvml")
    assert gpu_footprint(7, "cuda:0", nvml, 500) == (500, "framework")
    assert gpu_footprint(8, "cuda:1", nvml, 0) == (0, "framework")
    assert gpu_footprint(8, "cuda:1", nvml, None) is None


# The gateway


MLP = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}


@pytest.fixture(scope="module")
def beside_gpus(
    library: Callable[..., Path],
    start_gateway: Callable[..., Any],
    built: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """A gateway with frameworks for the CPU on a machine with GPUs; each model is named by its kind."""
    state = tmp_path_factory.mktemp("machine") / "state"
    state.write_text(MACHINE)

    def add(store: Path, name: str, source: str, group: str) -> None:
        (store / name).mkdir()
        shutil.copytree(max((built / source).glob("[0-9]*")), store / name / "1")
        config = built / source / "model.yaml"
        text = config.read_text() if config.exists() else ""
        (store / name / "model.yaml").write_text(f"{text}\ninstance_group: {{{group}}}\n")

    def prepare(store: Path) -> None:
        for kind in ("cpu", "auto", "gpu"):
            add(store, f"torch_{kind}", "mlp", f"kind: {kind}")
            add(store, f"tensorflow_{kind}", "identity_tensorflow", f"kind: {kind}")
        add(store, "listed", "mlp", "kind: gpu, gpus: [3]")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(library()))
        patch.setenv("FAKE_NVML", str(state))
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
        with start_gateway([], prepare=prepare) as gateway:
            yield gateway


def test_the_gateway_finds_the_gpus(beside_gpus: Any) -> None:
    log = beside_gpus.log.read_text()
    for uuid in (WHOLE, SMALL, LARGE):
        assert uuid in log


@pytest.mark.parametrize("kind", ["cpu", "auto"])
def test_frameworks_without_cuda_serve_on_the_cpu_beside_gpus(beside_gpus: Any, kind: str) -> None:
    answer = beside_gpus.infer(f"torch_{kind}", MLP)
    assert answer.status == 200, answer.body
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    assert beside_gpus.infer(f"tensorflow_{kind}", body).status == 200


def test_kind_gpu_says_in_one_sentence_that_the_framework_has_no_cuda(beside_gpus: Any) -> None:
    index = {each["name"]: each for each in beside_gpus.http.post("/v2/repository/index").json()}
    for name, framework in (("torch_gpu", "PyTorch "), ("tensorflow_gpu", "TensorFlow ")):
        assert beside_gpus.infer(name, MLP).status == 503
        reason = index[name]["reason"]
        assert reason.startswith(framework)
        assert reason.endswith("is a build for the CPU only; install one with CUDA, or set kind: cpu")


def test_a_gpu_number_that_is_not_there_is_named_with_those_that_are(beside_gpus: Any) -> None:
    index = {each["name"]: each for each in beside_gpus.http.post("/v2/repository/index").json()}
    assert index["listed"]["reason"] == "instance_group asks for GPU 3, this machine has GPU 0, 1, 2"


def test_metrics_stay_fine_beside_gpus(beside_gpus: Any) -> None:
    metrics = beside_gpus.metrics()
    assert metrics.of("gateway_version_state", model="torch_cpu", state="READY") == 1
    assert metrics.of("gateway_version_state", model="torch_gpu", state="FAILED") == 1
    assert metrics.of("gateway_instance_memory_bytes", model="torch_auto", device="cpu", kind="private") > 0
