"""What became of a foreign configuration: model.yaml's keys, and for each foreign key what was done with it."""

from dataclasses import dataclass, field
from typing import Any, Literal

Fate = Literal["kept", "changed", "dropped"]
MAX_FINDINGS = 200


@dataclass(frozen=True)
class Finding:
    """One foreign key and its fate, with a sentence that says what that means."""

    fate: Fate
    key: str
    sentence: str


@dataclass
class Translation:
    """The keys of model.yaml that a foreign configuration comes to, those that differ from the defaults."""

    keys: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """Files that belong beside model.yaml, by their names beside the foreign configuration."""

    def kept(self, key: str, sentence: str) -> None:
        """It means the same here."""
        self._add("kept", key, sentence)

    def changed(self, key: str, sentence: str) -> None:
        """It is here as well, but not quite the same."""
        self._add("changed", key, sentence)

    def dropped(self, key: str, sentence: str) -> None:
        """There is nothing like it here."""
        self._add("dropped", key, sentence)

    def _add(self, fate: Fate, key: str, sentence: str) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(fate, key, sentence))
        elif len(self.findings) == MAX_FINDINGS:
            self.findings.append(Finding("dropped", "…", f"there is more; {MAX_FINDINGS} findings are the most"))
