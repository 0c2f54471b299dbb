"""Single metrics out of all of them, as TorchServe's metrics API gives them for `name[]`. Pure."""

from collections.abc import Collection


def only(text: bytes, names: Collection[str]) -> bytes:
    """The families of Prometheus text that have one of these names, or a sample of such a name.

    A family's histogram or counter is meant by its own name, too: m for m_bucket, m_sum, m_count, m_total.
    """
    wanted = {name.encode() for name in names}
    kept: list[bytes] = []
    head: list[bytes] = []
    family, whole = b"", False
    for line in text.splitlines(keepends=True):
        if line.startswith(b"#"):
            parts = line.split(b" ", 3)
            if len(parts) > 2 and parts[2] != family:
                head, family, whole = [], parts[2], parts[2] in wanted
            head.append(line)
            continue
        if whole or line.partition(b"{")[0].partition(b" ")[0] in wanted:
            kept += head
            head = []
            kept.append(line)
    return b"".join(kept)
