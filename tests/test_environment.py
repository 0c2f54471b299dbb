from gateway.nodes.environment import ONE_THREAD, runner_environment


def test_secrets_and_what_nobody_needs_stay_behind() -> None:
    given = {
        "AWS_SECRET_ACCESS_KEY": "x",
        "DATABASE_URL": "x",
        "GATEWAY_MODEL_STORE": "x",
        "HTTPS_PROXY": "x",
        "TF_API_KEY": "x",
        "NVIDIA_TOKEN": "x",
        "PYTHON_PASSWORD": "x",
        "PATHS": "x",
    }
    assert not given.keys() & runner_environment(given).keys()


def test_what_libraries_read_is_passed() -> None:
    given = {"PATH": "/bin", "LC_ALL": "C", "PYTHONPATH": "/p", "TF_XLA_FLAGS": "f", "CUDA_HOME": "/c", "HOME": "/h"}
    assert given.items() <= runner_environment(given).items()


def test_threads_are_one_whatever_the_user_says_for_they_would_not_survive_a_fork() -> None:
    assert runner_environment({"OMP_NUM_THREADS": "8"}).items() >= ONE_THREAD.items()


def test_what_is_only_a_default_can_be_changed() -> None:
    name = "TF_ONEDNN_USE_SYSTEM_ALLOCATOR"
    assert runner_environment({})[name] == "1"
    assert runner_environment({name: "0"})[name] == "0"


def test_what_a_framework_writes_as_it_is_imported_goes_where_the_gateway_may_write() -> None:
    assert runner_environment({"TMPDIR": "/run/gateway"})["TMPDIR"] == "/run/gateway"
