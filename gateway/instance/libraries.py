"""Packages that register further operators with a framework: imported before the fork, named where one is lacking."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.errors import LoadFailed

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
OPTIONS = {"pytorch": "--torch-library", "tensorflow": "--tensorflow-library"}
_TORCH_PACKAGES = {"fbgemm": "fbgemm_gpu", "quantization": "torchao", "torchrec": "torchrec"}
"""Namespace of operators → the package that registers it, where the two differ."""
_TENSORFLOW_PACKAGES = (
    (
        re.compile(
            r"TFText>|CaseFoldUTF8|Normalize(UTF8|UTF8WithOffsetsMap)|Sentencepiece|.*(piece|Whitespace|Split|Script)"
            r"(De)?[Tt]okenize|RegexSplitWithOffsets|SentenceFragments|.*DetokenizeToText|NgramsStringJoin|RougeL"
            r"|ConstrainedSequence|MaxSpanningTree|SplitMergeTokenize|PhraseTokenize|.*TokenizeWithOffsets"
        ),
        "tensorflow_text",
    ),
    (re.compile(r"Addons>"), "tensorflow_addons"),
    (re.compile(r"IO>"), "tensorflow_io"),
    (re.compile(r"SimpleML"), "tensorflow_decision_forests"),
    (re.compile(r"Recommenders>"), "tensorflow_recommenders_addons"),
)


def load(framework: str, names: Sequence[str]) -> None:
    """Import packages by name; LoadFailed if one is not there, does not import, or starts a thread."""
    for name in names:
        option = f"{OPTIONS[framework]} {name}"
        before = _threads()
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name == name.partition(".")[0] or error.name == name:
                raise LoadFailed(f"{option}: no package of that name is installed") from None
            raise LoadFailed(f"{option}: it needs the package {error.name}, which is not installed") from None
        except Exception as error:  # noqa: BLE001 - a package may raise anything as it is imported
            said = str(error).strip().splitlines()
            reason = said[-1] if said else "it gives no reason"
            raise LoadFailed(f"{option}: it cannot be imported: {type(error).__name__}: {reason[:300]}") from None
        if _threads() > before:
            raise LoadFailed(f"{option}: it starts threads as it is imported, which a process for a model cannot have")


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def check(framework: str, wanted: Sequence[str]) -> None:
    """LoadFailed unless each package that a model.yaml names has been imported."""
    missing = next((name for name in wanted if name not in sys.modules), None)
    if missing is None:
        return
    state = "" if installed(missing) else ", and it is not installed"
    raise LoadFailed(
        f"model.yaml names the library {missing}, which the gateway was not started with{state}; "
        f"the operator can allow it with {OPTIONS[framework]} {missing}"
    )


def lacking(framework: str, operator: str, version: str) -> str:
    """One sentence: an operator is not part of the framework, which package has it, and how to have it loaded."""
    package, option = _package_of(framework, operator), OPTIONS[framework]
    said = f"the model calls the operator {operator}, which is not part of {version}"
    if package and package in sys.modules:
        return f"{said} nor of the library {package} that is loaded; install a version of {package} that has it"
    if package and installed(package):
        return f"{said}; the library {package} is installed: start the gateway with {option} {package}"
    example = package or ("torchvision" if framework == "pytorch" else "tensorflow_text")
    what = f"the library {package}, which has it," if package else "the library that has it"
    return (
        f"{said}; install {what} and start the gateway with {option} {package or 'NAME'}"
        f"{'' if package else f' (such as {example})'}, or export the model without the operator"
    )


def installed(package: str) -> bool:
    """Whether a package could be imported, as far as that is known without doing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _package_of(framework: str, operator: str) -> str:
    if framework == "pytorch":
        namespace = re.split(r"::|\.", operator)[0]
        package = _TORCH_PACKAGES.get(namespace, namespace)
        known = package.startswith("torch") or package in _TORCH_PACKAGES.values() or installed(package)
        return package if NAME.fullmatch(package) and known and package not in ("aten", "prim", "torch") else ""
    return next((package for pattern, package in _TENSORFLOW_PACKAGES if pattern.match(operator)), "")
