import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from gateway.errors import InferenceFailed, LoadFailed, OutOfMemory, RequestError
from gateway.instance.torch_backend import TorchBackend, TorchScriptModel
from gateway.store.manifest import ModelConfig, TensorConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Lite Interpreter:DeprecationWarning"),
]

Tensor = torch.Tensor


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Script a module, save it, load it as the gateway does."""

    def load_one(module: nn.Module | Path, **config: Any) -> TorchScriptModel:
        path = module if isinstance(module, Path) else tmp_path / "model.pt"
        if isinstance(module, nn.Module):
            torch.jit.script(module).save(str(path))
        return TorchBackend().load(path, ModelConfig(threads=1, **config), "cpu")

    return load_one


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def call(model: TorchScriptModel, **inputs: Any) -> dict[str, Any]:
    return model.execute("forward", {name: np.asarray(value) for name, value in inputs.items()})


def strings(*items: bytes) -> Any:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


class EveryArgument(nn.Module):
    def forward(
        self,
        x: Tensor,
        n: int,
        f: float,
        flag: bool,
        word: str,
        words: list[str],
        counts: list[int],
        maybe: Tensor | None,
        limit: int | None,
        scale: float = 2.0,
    ) -> tuple[Tensor, str, list[str], int, float, bool, Tensor | None]:
        total = 0
        for count in counts:
            total += count
        y = x * scale + float(n) * f
        if limit is not None:
            y = y.clamp(max=float(limit))
        if maybe is not None:
            y = y + maybe
        return y, word + "!", words, total, f, not flag, maybe


def every_argument(**more: Any) -> dict[str, Any]:
    return {
        "x": np.ones(2, np.float32),
        "n": np.int32(3),
        "f": np.array([0.5], np.float32),
        "flag": np.array(True),
        "word": strings("é".encode()),
        "words": strings(b"a", b"b"),
        "counts": np.array([1, 2], np.int64),
        **more,
    }


def test_every_kind_of_argument_and_of_scalar_result_travels_as_an_array(load: Any) -> None:
    outputs = call(load(EveryArgument()), **every_argument())
    assert list(outputs) == [f"output_{index}" for index in range(6)]
    assert outputs["output_0"].tolist() == [3.5, 3.5]
    assert outputs["output_1"].item() == "é!".encode()
    assert outputs["output_2"].tolist() == [b"a", b"b"]
    assert (outputs["output_3"].dtype, outputs["output_3"].shape, outputs["output_3"].item()) == (np.int64, (), 3)
    assert (outputs["output_4"].dtype, outputs["output_4"].item()) == (np.float64, 0.5)
    assert (outputs["output_5"].dtype, outputs["output_5"].item()) == (np.bool_, False)


def test_optional_arguments_may_be_given_or_left_out(load: Any) -> None:
    model = load(EveryArgument())
    given = every_argument(maybe=np.ones(2, np.float32), limit=np.int64(2), scale=np.float64(1))
    assert call(model, **given)["output_0"].tolist() == [3.0, 3.0]
    optional = {spec.name: spec.optional for spec in model.signatures["forward"].inputs}
    assert [name for name in optional if optional[name]] == ["maybe", "limit", "scale"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": np.float32(1)}, "input 'n' must be an integer, its datatype is float32"),
        ({"n": np.array([1, 2])}, "input 'n' must be an integer, one element; it has shape [2]"),
        ({"flag": np.int64(1)}, "input 'flag' must be a boolean, its datatype is int64"),
        ({"word": np.int64(1)}, "input 'word' must be a string, its datatype is int64"),
        ({"x": strings(b"a")}, "input 'x' has datatype BYTES; the model takes a tensor of numbers"),
        ({"z": np.int64(1)}, "unknown input 'z'; the model takes 'x', 'n'"),
    ],
)
def test_an_input_of_the_wrong_kind_is_refused_by_name(load: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("[", r"\[")):
        call(load(EveryArgument()), **every_argument(**change))


def test_a_missing_input_is_refused_by_name(load: Any) -> None:
    with pytest.raises(RequestError, match="input 'input' is missing"):
        load(mlp()).execute("forward", {})


def test_another_signature_is_refused(load: Any) -> None:
    with pytest.raises(RequestError, match="no signature 'other'"):
        load(mlp()).execute("other", {})


class ListOfTensors(nn.Module):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return xs[0] + 2 * xs[1]


def test_a_list_of_tensors_is_one_input_taken_apart_or_numbered_ones_or_declared_ones(load: Any) -> None:
    model, one, two = load(ListOfTensors()), np.float32([1]), np.float32([2])
    assert call(model, xs=np.stack([one, two]))["output_0"].tolist() == [5.0]
    assert call(model, xs_0=one, xs_1=two)["output_0"].tolist() == [5.0]
    named = load(ListOfTensors(), inputs=[TensorConfig("b", "FP32", [-1]), TensorConfig("a", "FP32", [-1])])
    assert call(named, a=two, b=one)["output_0"].tolist() == [5.0]
    with pytest.raises(RequestError, match="input 'a' is missing"):
        call(named, b=one)


class Dictionary(nn.Module):
    def forward(self, inputs: dict[str, Tensor], times: int = 1) -> dict[str, Tensor]:
        return {"sum": (inputs["a"] + inputs["b"]) * times, "a": inputs["a"]}


def test_a_dictionary_takes_all_names_that_no_other_argument_has(load: Any) -> None:
    model = load(Dictionary())
    outputs = call(model, a=np.float32([[1]]), b=np.float32([[2]]), times=np.int64(2))
    assert {name: array.tolist() for name, array in outputs.items()} == {"sum": [[6.0]], "a": [[1.0]]}
    signature = model.signatures["forward"]
    assert [spec.name for spec in signature.inputs] == ["a", "b", "times"]
    assert signature.open_inputs
    assert [spec.name for spec in signature.outputs] == ["sum", "a"]


def test_a_tuple_of_tensors_is_numbered_inputs(load: Any) -> None:
    class TakesTuple(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0] - pair[1]

    assert call(load(TakesTuple()), pair_0=np.float32([3]), pair_1=np.float32([1]))["output_0"].tolist() == [2.0]


class Nested(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, list[Tensor]], dict[str, Tensor], Pair]:
        return x, (x + 1, [x + 2, x + 3]), {"d": x + 4}, Pair(x + 5, x + 6)


def test_nested_results_are_flattened_and_keep_their_keys(load: Any) -> None:
    outputs = call(load(Nested()), x=np.float32([0]))
    names = ["output_0", "output_1", "output_2", "output_3", "output_4.d", "output_5.left", "output_5.right"]
    assert {name: array.tolist() for name, array in outputs.items()} == {n: [float(i)] for i, n in enumerate(names)}


class ReturnsPair(nn.Module):
    def forward(self, x: Tensor) -> Pair:
        return Pair(x, x + 1)


def test_a_named_tuple_names_the_outputs_in_the_signature_too(load: Any) -> None:
    model = load(ReturnsPair(), stateful=True)  # nothing is run to find out
    assert [spec.name for spec in model.signatures["forward"].outputs] == ["left", "right"]
    assert list(call(model, x=np.float32([0]))) == ["left", "right"]


def test_declared_outputs_rename_by_position_or_select_by_name(load: Any) -> None:
    first = TensorConfig("scores", "FP32", [-1, 1])
    assert list(call(load(mlp(), outputs=[first]), input=np.zeros((1, 16), np.float32))) == ["scores"]
    swapped = [TensorConfig("right", "FP32", [-1]), TensorConfig("left", "FP32", [-1])]
    outputs = call(load(ReturnsPair(), outputs=swapped), x=np.float32([0]))
    assert {name: array.tolist() for name, array in outputs.items()} == {"right": [1.0], "left": [0.0]}


def test_a_string_that_is_no_text_may_go_in_but_not_come_back(load: Any) -> None:
    class Echo(nn.Module):
        def forward(self, words: list[str]) -> list[str]:
            return words

    class Lengths(nn.Module):
        def forward(self, words: list[str]) -> Tensor:
            return torch.tensor([len(word) for word in words])

    assert call(load(Lengths()), words=strings(b"\xff\xfe"))["output_0"].tolist() == [2]
    with pytest.raises(RequestError, match="input 'words' is not UTF-8"):
        call(load(Echo()), words=strings(b"a", b"\xff"))


def test_an_empty_list_of_strings_stays_an_empty_tensor_of_strings(load: Any) -> None:
    class Echo(nn.Module):
        def forward(self, words: list[str]) -> list[str]:
            return words

    assert call(load(Echo()), words=strings())["output_0"].shape == (0,)


def test_a_complex_result_is_reported_by_name(load: Any) -> None:
    class Fourier(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x)

    with pytest.raises(InferenceFailed, match="output 'output_0' is complex64, for which the protocol has no datatype"):
        call(load(Fourier()), x=np.zeros(4, np.float32))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16, np.int8, np.int32, np.int64, np.float16, np.float64])
def test_datatypes_go_through_unchanged(load: Any, dtype: Any) -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, torch.cat([x, x])

    outputs = call(load(Double()), x=np.ones((1, 2), dtype))
    assert outputs["output_1"].dtype == dtype
    assert outputs["output_1"].tolist() == [[1, 1], [1, 1]]


def test_bfloat16_goes_in_and_comes_out(load: Any) -> None:
    model = load(nn.Sequential(nn.Linear(4, 2).to(torch.bfloat16)))
    output = call(model, input=np.ones((1, 4), ml_dtypes.bfloat16))["output_0"]
    assert output.dtype == ml_dtypes.bfloat16
    assert model.example("forward")["input"].dtype == ml_dtypes.bfloat16


def test_borrowed_read_only_unaligned_and_reversed_arrays_are_taken_without_a_warning(load: Any) -> None:
    model, values = load(mlp()), np.arange(16, dtype=np.float32)
    want = call(model, input=values[None])["output_0"].tolist()
    unaligned = np.frombuffer(memoryview(b"x" + values.tobytes())[1:], np.float32)
    assert not unaligned.flags.writeable
    assert call(model, input=unaligned[None])["output_0"].tolist() == want
    assert call(model, input=values[::-1].copy()[::-1][None])["output_0"].tolist() == want


def test_outputs_share_no_memory_with_inputs_or_later_calls(load: Any) -> None:
    class View(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 1:]

    x = np.float32([[1, 2]])
    model = load(View())
    output = call(model, x=x)["output_0"]
    x[:] = 9
    call(model, x=x)
    assert output.tolist() == [[2.0]]


def test_a_model_that_writes_into_its_input_gets_a_copy(load: Any) -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1).add_(1)

    x = np.float32([1])
    assert call(load(InPlace()), x=x)["output_0"].tolist() == [2.0]
    assert x.tolist() == [1.0]


def test_declared_inputs_are_strict_and_map_to_arguments_by_position(load: Any) -> None:
    model = load(mlp(), inputs=[TensorConfig("features", "FP32", [-1, 16])])
    (spec,) = model.signatures["forward"].inputs
    assert (spec.name, spec.datatype, spec.shape, spec.strict) == ("features", "FP32", (-1, 16), True)
    assert model.example("forward")["features"].shape == (1, 16)
    assert call(model, features=np.zeros((3, 16), np.float32))["output_0"].shape == (3, 4)


def test_a_declaration_that_cannot_fit_is_refused(load: Any) -> None:
    inputs = [TensorConfig("a", "FP32", [1]), TensorConfig("b", "FP32", [1])]
    with pytest.raises(LoadFailed, match=r"declares 2 inputs \(a, b\), but forward takes 'input'"):
        load(mlp(), inputs=inputs)


def test_the_model_s_own_message_is_told_without_traceback_or_path(load: Any) -> None:
    model = load(mlp())
    with pytest.raises(InferenceFailed) as caught:
        call(model, input=np.zeros((1, 3), np.float32))
    assert "mat1 and mat2 shapes cannot be multiplied (1x3 and 16x8)" in caught.value.message
    assert "Traceback" not in caught.value.message
    assert "/" not in caught.value.message


def test_an_exception_raised_by_the_model_keeps_its_kind_and_text(load: Any) -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.size(0) > 1:
                raise ValueError("one row at a time, see /home/me/readme/why.txt")
            return x

    with pytest.raises(InferenceFailed, match=r"^ValueError: one row at a time, see …$"):
        call(load(Picky()), x=np.zeros((2, 1), np.float32))


def test_a_string_cut_in_the_middle_of_a_character_fails_the_request_only(load: Any) -> None:
    class Cut(nn.Module):
        def forward(self, word: str) -> str:
            return word[:-1]

    model = load(Cut())
    with pytest.raises(InferenceFailed, match="UnicodeDecodeError"):
        call(model, word=strings("é".encode()))
    assert call(model, word=strings(b"ab"))["output_0"].item() == b"a"


def test_running_out_of_memory_is_told_as_such(load: Any) -> None:
    class Greedy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.expand(1 << 45, 4) + 1

    with pytest.raises(OutOfMemory):
        call(load(Greedy(), stateful=True), x=np.zeros((1, 4), np.float32))


def test_the_optimised_module_is_used_when_its_answers_are_the_same(load: Any) -> None:
    source, x = mlp(), np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    model = load(source)
    assert model.notes == ["optimize_for_inference: same answers, used"]
    np.testing.assert_allclose(
        call(model, input=x)["output_0"], source(torch.from_numpy(x)).detach(), rtol=1e-4, atol=1e-6
    )


def test_the_plain_module_is_used_when_the_optimised_one_answers_differently(load: Any, monkeypatch: Any) -> None:
    wrong = torch.jit.script(nn.Sequential(mlp(), nn.Hardswish()).eval())
    monkeypatch.setattr(torch.jit, "optimize_for_inference", lambda _: wrong)
    model = load(mlp())
    assert model.notes == ["optimize_for_inference: answers differ, plain module used"]
    assert call(model, input=np.ones((1, 16), np.float32))["output_0"].tolist() != wrong(torch.ones(1, 16)).tolist()


def test_the_plain_module_is_used_when_optimising_fails(load: Any, monkeypatch: Any) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(torch.jit, "optimize_for_inference", fail)
    model = load(mlp())
    assert model.notes == ["optimize_for_inference: failed, plain module used"]
    assert call(model, input=np.ones((1, 16), np.float32))["output_0"].shape == (1, 4)


def test_a_model_without_forward_is_refused(load: Any) -> None:
    class Other(nn.Module):
        @torch.jit.export
        def predict(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(LoadFailed, match="no forward method"):
        load(Other())


def test_an_argument_that_no_tensor_can_carry_is_refused_with_its_type(load: Any) -> None:
    class Strange(nn.Module):
        def forward(self, x: dict[int, Tensor]) -> Tensor:
            return x[0]

    with pytest.raises(LoadFailed, match=r"'x' of type Dict\[int, Tensor\]"):
        load(Strange())


def zip_of(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return path


def test_files_that_are_no_torchscript_are_refused_with_what_to_do(tmp_path: Path, load: Any) -> None:
    whole = tmp_path / "whole.pt"
    torch.jit.script(mlp()).save(str(whole))
    torch.save(mlp(), tmp_path / "eager.pt")
    torch.save(mlp().state_dict(), tmp_path / "state.pt")
    torch.save(mlp().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "torn.pt").write_bytes(whole.read_bytes()[:1000])
    (tmp_path / "text.pt").write_text("hello")
    zip_of(tmp_path / "exported.pt2", "m/archive_format", "m/models/model.json")
    zip_of(tmp_path / "packaged.pt2", "m/data/aotinductor/model/a.so", "m/archive_format")
    zip_of(tmp_path / "mobile.ptl", "m/data.pkl", "m/bytecode.pkl", "m/constants.pkl")
    zip_of(tmp_path / "model.mar", "MAR-INF/MANIFEST.json", "model.pt")
    zip_of(tmp_path / "bad.pt", "m/data.pkl", "m/code/__torch__.py", "m/constants.pkl", "m/version")
    for name, reason in {
        "eager.pt": "pickled nn.Module",
        "state.pt": "no code to run them",
        "old.pt": "written by torch.save",
        "torn.pt": "truncated",
        "text.pt": "not a TorchScript archive",
        "exported.pt2": "exported program",
        "packaged.pt2": "AOTInductor",
        "mobile.ptl": "mobile bytecode",
        "model.mar": "TorchServe archive",
        "bad.pt": "cannot open the TorchScript archive",
        "missing.pt": "is not a file",
    }.items():
        with pytest.raises(LoadFailed, match=reason) as caught:
            load(tmp_path / name)
        assert str(tmp_path) not in caught.value.message
        assert "Traceback" not in caught.value.message


@pytest.mark.parametrize("flatbuffer", [False, True])
def test_mobile_models_are_served(tmp_path: Path, load: Any, flatbuffer: bool) -> None:
    path = tmp_path / "model.ptl"
    torch.jit.script(mlp())._save_for_lite_interpreter(str(path), _use_flatbuffer=flatbuffer)  # noqa: SLF001
    assert call(load(path), input=np.zeros((2, 16), np.float32))["output_0"].shape == (2, 4)


def test_hooks_of_a_scripted_module_are_run(load: Any) -> None:
    module = mlp()

    def double(self: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:  # noqa: ARG001
        return output * 2

    want = module(torch.ones(1, 16)) * 2
    module.register_forward_hook(double)
    assert np.allclose(call(load(module), input=np.ones((1, 16), np.float32))["output_0"], want.detach())


def test_importing_the_backend_starts_no_thread() -> None:
    code = "import os, gateway.instance.torch_backend as b; b.TorchBackend(); print(len(os.listdir('/proc/self/task')))"
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | one, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


def test_a_model_says_what_the_allocator_of_its_own_gpu_holds_and_nothing_on_the_cpu(
    load: Any, monkeypatch: Any
) -> None:
    model = load(mlp())
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: {torch.device("cuda:0"): 7}[device])
    assert model.device_memory() is None
    model._device = torch.device("cuda:0")  # noqa: SLF001 - there is no GPU here to load it on
    assert model.device_memory() == 7


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has CUDA")
def test_a_gpu_is_refused_by_a_build_for_the_cpu(tmp_path: Path) -> None:
    torch.jit.script(mlp()).save(str(tmp_path / "model.pt"))
    with pytest.raises(LoadFailed, match=r"^PyTorch \S+ is a build for the CPU only; install one with CUDA, or"):
        TorchBackend().load(tmp_path / "model.pt", ModelConfig(), "cuda:0")
