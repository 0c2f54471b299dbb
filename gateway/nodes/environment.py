"""The environment that runners are started with: what libraries read and nothing else.

A model can read the environment of its process, and the gateway's own may hold passwords and tokens.
"""

from collections.abc import Mapping

# numpy and the frameworks start thread pools at import unless told otherwise, and a thread does not survive a fork.
ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KINETO_LOG_LEVEL": "99",  # PyTorch's profiler says when it begins and ends
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}

# With its own allocator TensorFlow waits ten seconds for memory that is not there; it is no faster with it.
_UNLESS_SAID = {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1"}

_NAMES = frozenset(
    {
        "PATH",  # libraries look for tools as they are imported
        "HOME",  # where Python finds packages of `pip install --user`; instances get another
        "TMPDIR",  # TensorFlow looks for a directory that it can write to as it is imported; instances get another
        "LANG", "LANGUAGE", "TZ",
        "VIRTUAL_ENV", "CONDA_PREFIX",
        "LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES",  # how CUDA and allocators are brought in
        "XLA_FLAGS",
    }
)  # fmt: skip
_PREFIXES = (
    "LC_", "PYTHON",
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "BLIS_", "VECLIB_", "NUMEXPR_",
    "MALLOC_", "TCMALLOC_", "JEMALLOC_",
    "TF_", "TORCH_", "PYTORCH_", "ATEN_",
    "CUDA_", "CUDNN_", "CUBLAS_", "NVIDIA_", "NCCL_",
)  # fmt: skip
# Whatever it is for, nobody wants a model to read it.
_SECRET = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "API_KEY")


def runner_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the gateway's environment a runner gets."""
    passed = {
        name: value
        for name, value in environment.items()
        if (name in _NAMES or name.startswith(_PREFIXES)) and not any(word in name.upper() for word in _SECRET)
    }
    return _UNLESS_SAID | passed | ONE_THREAD
