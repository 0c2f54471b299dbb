import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway

ROOT = Path(gateway.__file__).parent

# Each module imports from lines above its own, or from its own line.
LAYERS = """
    gateway gateway.errors gateway.ipc gateway.instance gateway.http gateway.lifecycle gateway.nodes gateway.store
    gateway.commands gateway.importing
    gateway.cgroups gateway.orphans gateway.children
    gateway.sizes gateway.cpus gateway.pixels gateway.yaml_text gateway.samples gateway.tensors gateway.settings
    gateway.ipc.lifeline
    gateway.store.contents gateway.store.regular gateway.store.pickles
    gateway.store.processing
    gateway.keys gateway.tls
    gateway.store.manifest gateway.metrics gateway.lifecycle.state gateway.importing.report gateway.importing.text_proto
    gateway.importing.fields gateway.departed
    gateway.importing.triton_scheduling
    gateway.importing.triton
    gateway.store.foreign
    gateway.graphdef
    gateway.ipc.framing gateway.ipc.arena gateway.ipc.facts gateway.ipc.batching gateway.store.source
    gateway.ipc.messages
    gateway.ipc.batch_reports
    gateway.ipc.recording
    gateway.nodes.control
    gateway.nodes.recording
    gateway.importing.plan gateway.importing.archive
    gateway.importing.tensorflow_serving gateway.importing.torchserve gateway.importing.mlserver
    gateway.importing.layouts gateway.importing.copying
    gateway.store.settling gateway.store.footprints gateway.store.watch
    gateway.http.json_depth gateway.http.compression gateway.http.responses
    gateway.http.json_codec gateway.http.json_codec.numbers gateway.http.json_codec.budget
    gateway.http.json_codec.document
    gateway.http.tensor_json
    gateway.instance.row_*
    gateway.lifecycle.placement gateway.lifecycle.policy gateway.lifecycle.admission gateway.lifecycle.scarcity
    gateway.instance.backend gateway.instance.libraries gateway.instance.probing
    gateway.instance.kernel gateway.instance.syscalls gateway.instance.heap
    gateway.instance.landlock gateway.instance.seccomp gateway.instance.priority
    gateway.instance.sandbox
    gateway.ipc.abandonment gateway.ipc.reply gateway.ipc.channel gateway.instance.batch_checks
    gateway.instance.queue gateway.instance.connection gateway.instance.batching
    gateway.instance.batch_agreement gateway.instance.proof_rows
    gateway.instance.checked_batches
    gateway.instance.replies gateway.instance.proof gateway.instance.images gateway.instance.classes
    gateway.instance.handlers gateway.instance.examples
    gateway.instance.torch_recording gateway.instance.tensorflow_recording
    gateway.instance.serve gateway.instance.recording gateway.instance.process
    gateway.instance.torch_* gateway.instance.tensorflow_*
    gateway.instance.runner gateway.nodes.node gateway.nodes.memory gateway.nodes.gpus
    gateway.nodes.environment gateway.nodes.output gateway.nodes.scratch gateway.nodes.claims
    gateway.nodes.runners gateway.lifecycle.deaths
    gateway.lifecycle.version gateway.lifecycle.registry gateway.lifecycle.wanted gateway.nodes.gauge
    gateway.lifecycle.batch_ledger
    gateway.nodes.local gateway.lifecycle.keeper gateway.lifecycle.residency
    gateway.lifecycle.loader gateway.lifecycle.manager
    gateway.byhand gateway.profiling gateway.exposition gateway.overview gateway.routing
    gateway.comparing gateway.comparing.spread gateway.comparing.pairing gateway.comparing.schedule
    gateway.comparing.agreement
    gateway.comparing.document
    gateway.comparing.conclusions
    gateway.comparing.page
    gateway.http.wishes gateway.http.condemned gateway.http.retry
    gateway.http.*
    gateway.listeners gateway.keyring
    gateway.precautions
    gateway.worker_process gateway.workers gateway.startup
    gateway.supervisor gateway.verdicts
    gateway.validation
    gateway.commands.*
    gateway.cli
    gateway.__main__
""".strip().splitlines()

# Functions of their arguments and nothing else.
PURE = {
    "gateway.errors",
    "gateway.sizes",
    "gateway.graphdef",
    "gateway.tensors",
    "gateway.ipc.framing",
    "gateway.instance.queue",
    "gateway.instance.batching",
    "gateway.instance.batch_agreement",
    "gateway.instance.batch_checks",
    "gateway.instance.proof_rows",
    "gateway.instance.classes",
    "gateway.http.shadow_answers",
    "gateway.http.wishes",
    "gateway.http.retry",
    "gateway.instance.syscalls",
    "gateway.nodes.claims",
    "gateway.nodes.environment",
    "gateway.lifecycle.state",
    "gateway.lifecycle.placement",
    "gateway.lifecycle.policy",
    "gateway.lifecycle.admission",
    "gateway.lifecycle.scarcity",
    "gateway.store.settling",
    "gateway.metrics",
    "gateway.http.tensor_json",
    "gateway.http.json_depth",
    "gateway.http.json_codec.numbers",
    "gateway.http.json_codec.budget",
    "gateway.http.json_codec.document",
    "gateway.http.compression",
    "gateway.http.access",
    "gateway.http.identity",
    "gateway.http.rates",
    "gateway.importing.report",
    "gateway.importing.text_proto",
    "gateway.importing.fields",
    "gateway.importing.triton_scheduling",
    "gateway.importing.triton",
    "gateway.http.form_fields",
    "gateway.http.management_calls",
    "gateway.http.metrics_filter",
    "gateway.http.torchserve_errors",
    "gateway.http.torchserve_inputs",
    "gateway.lifecycle.wanted",
    "gateway.verdicts",
    "gateway.comparing.spread",
    "gateway.comparing.pairing",
    "gateway.comparing.schedule",
    "gateway.comparing.agreement",
    "gateway.comparing.document",
    "gateway.comparing.conclusions",
    "gateway.comparing.page",
}
INPUT_OUTPUT = {"asyncio", "socket", "select", "subprocess", "uvicorn", "fastapi", "threading", "signal"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def layer(module: str) -> int:
    for number, line in enumerate(LAYERS):
        if module in line.split():
            return number
    for number, line in enumerate(LAYERS):
        if any(each.endswith("*") and module.startswith(each[:-1]) for each in line.split()):
            return number
    raise AssertionError(f"{module} has no layer yet: give it one")


def imports(path: Path) -> Iterator[str]:
    """Everything imported anywhere in a file, but for what only a type checker reads."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    upwards = [
        each for each in imports(MODULES[module]) if each.split(".")[0] == "gateway" and layer(each) > layer(module)
    ]
    assert not upwards


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_touch_no_socket_and_no_loop(module: str) -> None:
    assert not {each.split(".")[0] for each in imports(MODULES[module])} & INPUT_OUTPUT


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_pickled(module: str) -> None:
    assert not {each.split(".")[0] for each in imports(MODULES[module])} & {"pickle", "marshal", "shelve", "dill"}
    assert "allow_pickle" not in MODULES[module].read_text()


@pytest.mark.parametrize("module", MODULES)
def test_only_the_instance_side_imports_a_framework(module: str) -> None:
    frameworks = {each.split(".")[0] for each in imports(MODULES[module])} & {"torch", "tensorflow", "keras"}
    assert not frameworks or module.startswith("gateway.instance.")


@pytest.mark.parametrize(
    "module",
    ["gateway.cli", "gateway.http.worker", "gateway.http.decoder_process", "gateway.supervisor", "gateway.startup"],
)
def test_neither_framework_is_loaded_by(module: str) -> None:
    code = f"import sys, {module}; print([n for n in ('torch', 'tensorflow', 'pickle5', 'pandas') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT.parent, timeout=30
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
