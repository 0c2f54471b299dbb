"""Reads TorchScript archives from their files."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gateway.errors import LoadFailed
from gateway.instance import torch_errors

_NO_FORWARD = "the archive has no forward method; script or trace a module that defines forward"


def read_archive(artifact: Path, device: str) -> tuple[Any, Any]:
    """The module in evaluation mode, and its graph with the types of the inputs it was traced with, if known.

    LoadFailed if the file is no TorchScript archive or has no forward method; OutOfMemory.
    """
    read: Callable[..., Any] = torch.jit.load
    typed = None
    try:
        if torch_errors.has_traced_inputs(artifact):
            with contextlib.suppress(RuntimeError):
                module = read(artifact, map_location=device, _restore_shapes=True)
                graph = module.graph
                typed = graph.copy()
                # The types are those of one example: no pass may take them for the shapes of all requests.
                torch._C._jit_pass_erase_shape_information(graph)  # noqa: SLF001 - no public name
        if typed is None:
            module = read(artifact, map_location=device)
        module = module.eval()
    except AttributeError:  # only traced modules without forward have no graph
        raise LoadFailed(_NO_FORWARD) from None
    except Exception as error:  # noqa: BLE001 - a damaged archive may raise anything
        if reason := torch_errors.refusal(artifact):
            raise LoadFailed(reason) from None
        raise torch_errors.unreadable(error) from None
    if not module._c._has_method("forward"):  # noqa: SLF001 - no public name
        raise LoadFailed(_NO_FORWARD)
    return module, typed


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress PyTorch's warnings that TorchScript is deprecated: the user has the archive already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
