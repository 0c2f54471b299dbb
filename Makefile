# `make` lists the targets. ARGS is handed on: make test ARGS="-k metrics", make serve ARGS="--port 9000".

CONSTRAINTS := constraints/cpu.txt
INSTALLED := .venv/installed
CLIENTS := .venv-clients/installed

# Sets the shell's `python` to the first that is Python 3.11 or newer and can make virtual environments, or says
# what to install.
FIND_PYTHON = \
	for python in $(PYTHON) python3.11 python3 python3.12 python3.13; do \
		"$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "Python 3.11 or newer with its venv module is needed and was not found." >&2; \
		echo "On Debian 12, Ubuntu 24.04 and newer ones: apt-get install python3 python3-venv" >&2; \
		exit 1; \
	fi

.DEFAULT_GOAL := help
.PHONY: help setup clients serve test lint bench bars soak load load-ui dashboards compare python

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(INSTALLED) ## Install the gateway and everything it needs, on the CPU, into .venv

serve: setup ## Serve the example models in model_store
	.venv/bin/gateway serve --model-store model_store $(ARGS)

clients: $(CLIENTS) ## Install clients for the tests that want other versions, into .venv-clients

# Two processes, each with whole files, because most of a test is waiting for another process to start or to end.
test: setup clients ## Run the tests; ARGS="-n 0 -k name" runs some of them in one process
	.venv/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: setup ## Check style, format and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: setup ## Measure throughput and latency; PEER=triton measures Triton beside it
	.venv/bin/python loadtests/bench.py $(if $(PEER),--peer $(PEER)) $(ARGS)

bars: setup ## Prove under load what is promised: swaps, faults, cold models, overload, abandoned requests, a shadow
	@failed=; for bar in $(or $(BARS),swap faults cold overload abandon beside); do \
		.venv/bin/python loadtests/$$bar.py $(ARGS) || failed="$$failed $$bar"; \
	done; if [ -n "$$failed" ]; then echo "missed:$$failed" >&2; exit 1; fi

soak: setup ## All of that at once for MINUTES (20), with what fails and how memory grows
	.venv/bin/python loadtests/soak.py --minutes $(or $(MINUTES),20) $(ARGS)

load: setup ## Load the digit models with locust; ARGS="--shape spike --users 64 --seconds 60", report in load-report/
	.venv/bin/python loadtests/load.py $(ARGS)

load-ui: setup ## The same by locust's own page
	.venv/bin/python loadtests/load.py --ui $(ARGS)

dashboards: setup ## Write Grafana's dashboards (deploy/grafana/dashboards) and check Prometheus' rules, if promtool is there
	.venv/bin/python deploy/grafana/dashboards.py
	@! command -v promtool >/dev/null || promtool check config deploy/prometheus/prometheus.yml
	@! command -v promtool >/dev/null || promtool test rules deploy/prometheus/tests/*.yml

compare: setup ## PyTorch or TensorFlow? The digit models side by side, report in compare-report/
	.venv/bin/python loadtests/compare.py $(ARGS)

# The Python that `make setup` takes.
python:
	@$(FIND_PYTHON); echo "$$python"

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@.venv/bin/python -m pip --version >/dev/null 2>&1 && exit; $(FIND_PYTHON); \
	echo "Making .venv with $$python, $$("$$python" --version)"; "$$python" -m venv --clear .venv
	@echo "Installing PyTorch, TensorFlow and the rest into .venv: about 1 GB to download, minutes the first time"
	.venv/bin/python -m pip install --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[cpu,dev,load,tracing]'
	@touch $@
	@echo "Done. Next: make serve"

# It sees the packages of .venv behind its own.
$(CLIENTS): constraints/clients.txt $(INSTALLED)
	@echo "Installing clients for the tests into .venv-clients: 20 MB to download"
	.venv/bin/python -m venv --clear --without-pip .venv-clients
	@packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	.venv/bin/python -c "$$packages" > "$$(.venv-clients/bin/python -c "$$packages")/behind.pth"
	.venv/bin/python -m pip --python .venv-clients/bin/python install --disable-pip-version-check --no-deps --no-compile \
		--requirement constraints/clients.txt
	@touch $@
