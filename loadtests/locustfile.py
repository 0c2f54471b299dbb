"""Locust's users: each asks for handwritten digits in the words of one API, on PyTorch and TensorFlow in turn.

`make load` and `make load-ui` start it beside a gateway, `locust -f loadtests/locustfile.py --host URL` without.
"""

import random
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import gevent
import httpx
from locust import FastHttpUser, LoadTestShape, events, task
from locust.env import Environment

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "model_store" / "digits_torch")]
from data import split  # noqa: E402 - lies beside the model
from digit_calls import DIALECTS, MODELS, Call, batch, call, digit, digits_in  # noqa: E402 - locust runs this file from anywhere
from load_shapes import SHAPES, SPAWN_RATE, users_at  # noqa: E402 - as above
from timeline import Timeline, draw  # noqa: E402 - as above

ENOUGH = 0.9
"""Of the held-out digits must be recognized by a model before anybody is timed."""
timeline = Timeline()
started = 0.0
samples: dict[tuple[str, str], list["Sample"]] = {}
"""By framework and dialect."""


class Sample(NamedTuple):
    """A call, and the digit that stands on its image."""

    call: Call
    label: int


@events.init_command_line_parser.add_listener
def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="soak", help="users over time (open: at a constant rate)")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second of the shape open")
    parser.add_argument("--plot", default="", help="a PNG of throughput and latency over time")


@events.test_start.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    global timeline, started
    digits = split()[1]
    for framework, model in MODELS.items():
        known = _recognized(environment.host or "", model, digits)
        for dialect in DIALECTS:
            samples[framework, dialect] = [
                Sample(call(dialect, model, digits.images[number]), int(digits.labels[number])) for number in known
            ]
    timeline, started = Timeline(), time.perf_counter()
    if environment.web_ui is None:
        gevent.spawn(_progress, environment)


class DigitsUser(FastHttpUser):
    """Sends one digit after the other, and looks at each answer."""

    abstract = True
    dialect: ClassVar[str]
    network_timeout = connection_timeout = 60.0

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        self._interval = options.num_users / options.rate if options and options.shape == "open" else 0.0
        self._due = time.perf_counter() + random.uniform(0, self._interval)

    def wait_time(self) -> float:
        """Seconds until the next request: none, or with the shape `open` until it is due, whatever answers take."""
        if not self._interval:
            return 0.0
        self._due += self._interval
        return max(0.0, self._due - time.perf_counter())

    @task
    def classify(self) -> None:
        """Ask one of the models."""
        framework = random.choice(list(MODELS))
        sample = random.choice(samples[framework, self.dialect])
        late = max(0.0, time.perf_counter() - self._due) if self._interval else 0.0
        path, headers, body = sample.call
        name = f"{framework} · {self.dialect}"
        with self.client.post(path, data=body, headers=headers, name=name, catch_response=True) as answer:
            answer.request_meta["response_time"] += late * 1000  # from when it was due
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}: {(answer.text or '')[:100]}")
                return
            try:
                found = digit(self.dialect, answer.headers, answer.content)
            except ValueError as error:
                answer.failure(str(error))
            else:
                if found != sample.label:
                    answer.failure(f"took a {sample.label} for a {found}")


class OipJson(DigitsUser):
    """Open Inference Protocol, JSON."""

    dialect = "OIP JSON"


class OipBinary(DigitsUser):
    """Open Inference Protocol, binary tensors."""

    dialect = "OIP binary"


class TensorFlowServing(DigitsUser):
    """TensorFlow Serving's REST API."""

    dialect = "TF Serving"


class TorchServe(DigitsUser):
    """TorchServe's predictions."""

    dialect = "TorchServe"


class Chosen(LoadTestShape):
    """The shape that --shape names."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Called by locust every second."""
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        users = users_at(options.shape, self.get_run_time(), options.run_time, options.num_users or 1)
        return None if users is None else (users, SPAWN_RATE)


def _recognized(host: str, model: str, digits: Any) -> list[int]:
    """The numbers of the held-out digits that a model takes for what they are; asked for before anybody is timed."""
    path, headers, body = batch(model, digits.images)
    answer = httpx.post(f"{host}{path}", headers=headers, content=body, timeout=60.0).raise_for_status()
    taken_for = digits_in(answer.headers, answer.content)
    found = [number for number, label in enumerate(digits.labels) if taken_for[number] == label]
    if len(found) < ENOUGH * len(digits.labels):
        raise RuntimeError(f"{model} recognizes {len(found)} of {len(digits.labels)} digits only")
    return found


@events.request.add_listener
def _keep(name: str, response_time: float, exception: Exception | None, **_: Any) -> None:
    framework = name.partition(" · ")[0]
    timeline.add(framework, time.perf_counter() - started, response_time, right=exception is None)


def _progress(environment: Environment) -> None:
    """A line a second on a terminal, every five seconds elsewhere."""
    runner, options = environment.runner, environment.parsed_options
    assert runner is not None
    assert options is not None
    terminal = sys.stderr.isatty()
    while runner.state not in ("stopping", "stopped"):
        gevent.sleep(1.0 if terminal else 5.0)
        total = runner.stats.total
        p95 = total.get_current_response_time_percentile(0.95) or 0.0
        line = (
            f"{time.perf_counter() - started:5.0f} s of {options.run_time or 0:.0f} s  {runner.user_count:4} users  "
            f"{total.current_rps:7.0f} requests/s  p95 {p95:6.1f} ms  {total.num_failures} failed"
        )
        print(f"\r{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
    if terminal:
        print(file=sys.stderr)


@events.quitting.add_listener
def _finish(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    total = environment.stats.total
    if options.plot and total.num_requests:
        draw(timeline, f"{options.shape}, up to {options.num_users} users on {environment.host}", Path(options.plot))
    environment.process_exit_code = 0 if total.num_requests and not total.num_failures else 1
