"""What PyTorch's errors become for the people who caused them."""

from typing import Any

import pytest

from gateway.errors import InferenceFailed, InputRefused
from gateway.instance import torch_errors


def test_a_traced_models_error_is_its_last_line_not_its_stack() -> None:
    stack = "\n".join(f"/a/b/module.py({n}): _call_impl" for n in range(40))
    text = f"Failed.\nTraceback of TorchScript, original code (most recent call last):\n{stack}\n"
    assert torch_errors.clean(RuntimeError(f"{text}RuntimeError: index out of range in self\n")) == (
        "index out of range in self"
    )


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("mat1 and mat2 shapes cannot be multiplied (1x3 and 16x8)", InputRefused),
        ("expected scalar type Float but found Double", InputRefused),
        ("index 5 is out of bounds for dimension 0", InputRefused),
        ("something else broke", InferenceFailed),
        ("Expected all tensors to be on the same device, of size 3", InferenceFailed),
    ],
)
def test_only_errors_about_shape_size_datatype_or_index_are_the_callers(said: str, kind: Any) -> None:
    assert type(torch_errors.failure(RuntimeError(said))) is kind
