"""How many users there are at a moment of a load test: pure functions of time."""

SHAPES = ("ramp", "spike", "soak", "open")
SPAWN_RATE = 100.0
"""Users a second that may be started to get there."""


def users_at(shape: str, second: float, seconds: float | None, most: int) -> int | None:
    """The users that a shape wants; None when its time is over, which it is never without `seconds`.

    ramp: one user to all, evenly. spike: a fifth of them, and all for the middle fifth of the time. soak, open: all.
    """
    if seconds is not None and second >= seconds:
        return None
    part = second / seconds if seconds else 0.5
    if shape == "ramp":
        return max(1, round(most * min(1.0, part / 0.9)))  # the last tenth shows what all of them reach
    if shape == "spike" and not 0.4 <= part < 0.6:
        return max(1, most // 5)
    return most
