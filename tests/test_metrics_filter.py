from gateway.http.metrics_filter import only

TEXT = b"""# HELP a_total How many.
# TYPE a_total counter
a_total{x="1 {"} 2.0
a_total{x="b_sum"} 3.0
# HELP b_seconds How long.
# TYPE b_seconds histogram
b_seconds_bucket{le="1"} 1.0
b_seconds_sum 0.5
# HELP c None.
# TYPE c gauge
"""


def test_a_family_is_kept_with_its_head() -> None:
    assert only(TEXT, ["a_total"]) == TEXT[: TEXT.index(b"# HELP b")]
    assert only(TEXT, ["b_seconds"]) == TEXT[TEXT.index(b"# HELP b") : TEXT.index(b"# HELP c")]


def test_a_sample_is_kept_with_its_familys_head_alone() -> None:
    head = b"# HELP b_seconds How long.\n# TYPE b_seconds histogram\n"
    assert only(TEXT, ["b_seconds_sum"]) == head + b"b_seconds_sum 0.5\n"


def test_nothing_is_kept_of_what_is_not_there() -> None:
    assert only(TEXT, ["b_sum", "c", "1"]) == b""
