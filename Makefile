# Everything a newcomer needs: `make demo`, `make test`. `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
FEEDS ?= examples/news_swarm/sample
OUT ?= out
PROCESSES ?= 1
BUDGET ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint types layers unit suites cluster mutants faults faults-table soak bench bench-peers bench-peers-report litellm clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than 3.11; name another one: make PYTHON=python3.12 ..." >&2; exit 3; }
	@$(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "make: no virtual environment; on Debian: apt install python3-venv" >&2; exit 3; }

.venv/.ready-demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "setting up .venv"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[news,fast]'
	@touch .venv/.ready-demo

.venv/.ready-test: .venv/bin/python pyproject.toml constraints.txt
	@echo "setting up .venv for tests"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch .venv/.ready-test .venv/.ready-demo

demo: .venv/.ready-demo  ## the news swarm on the shipped sample feeds (FEEDS=... OUT=... PROCESSES=... BUDGET=dollars a day)
	@$(BIN)/python examples/news_swarm/main.py $(FEEDS) --out "$(OUT)" --summary "$(OUT)/summary.json" --processes $(PROCESSES) $(if $(BUDGET),--budget $(BUDGET))

test: lint types layers suites  ## lint, types, layers, the tests on Valkey, and on a redis-server found here those that hang on it

lint: .venv/.ready-test  ## ruff: rules and format
	@$(BIN)/python -m ruff check -q . && $(BIN)/python -m ruff format -q --check .

types: .venv/.ready-test  ## mypy, strict
	@$(BIN)/python -m mypy --no-error-summary

layers: .venv/.ready-test  ## import-linter: imports point down
	@$(BIN)/lint-imports > .venv/layers.log 2>&1 || { cat .venv/layers.log; exit 1; }

suites: .venv/.ready-test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --redis-kind valkey
	@if command -v redis-server > /dev/null; then \
		echo '$(BIN)/python -m pytest -q -n 2 --dist loadfile --redis-kind redis tests/integration tests/properties tests/faults -m "not any_server"'; \
		$(BIN)/python -m pytest -q -n 2 --dist loadfile --redis-kind redis tests/integration tests/properties tests/faults -m "not any_server"; \
	else echo "no redis-server here: tested on the bundled Valkey alone"; fi

cluster: .venv/.ready-test  ## the board, its money and the bus on a cluster of three
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --redis-kind cluster tests/integration --ignore tests/integration/test_cli.py \
		--ignore tests/integration/test_cli_bus.py --ignore tests/integration/test_cli_models.py

mutants: .venv/.ready-test  ## delete each guard in the Lua, one at a time: some test must notice
	$(BIN)/python tests/mutants.py

faults: .venv/.ready-test  ## the fault lab in its long form: killed, frozen, cut off, out of memory; half an hour
	rm -f tests/faults/results/faults.jsonl
	SWARM_FAULT_ROUNDS=20 SWARM_FAULT_RESULTS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --redis-kind valkey tests/faults

faults-table: .venv/.ready-test  ## what the fault lab found, into docs/reliability.md
	$(BIN)/python tests/faults/table.py

SECONDS ?= 1800
RATE ?= 300
soak: .venv/.ready-test  ## half an hour at 300 items/s with a fault every minute: what grows, what is lost? (SECONDS=... RATE=...)
	$(BIN)/python tests/soak/soak.py --seconds $(SECONDS) --rate $(RATE)

bench: .venv/.ready-test  ## cycles per second, latency, memory; JSON and a table
	$(BIN)/python benchmarks/bench.py

REPS ?= 5
ONLY ?=
PEERS ?=
WITHOUT ?=
BACKLOGS ?=
bench-peers: .venv/.ready-demo  ## beside Celery, BullMQ, LangGraph, ...: half an hour (REPS=5 ONLY="drain latency" PEERS="ours bullmq-node" WITHOUT=... BACKLOGS=folder)
	@cd benchmarks && ../$(BIN)/python -m peers.run --reps $(REPS) --only "$(ONLY)" --peers "$(PEERS)" --without "$(WITHOUT)" \
		$(if $(BACKLOGS),--backlogs "$(abspath $(BACKLOGS))")

bench-peers-report: .venv/.ready-demo  ## docs/performance.md from a result file: RUN=benchmarks/results/peers-8.json
	@cd benchmarks && ../$(BIN)/python -m peers.run --publish "$(abspath $(RUN))"

# LiteLLM's proxy brings parts under another licence, so it has an environment of its own and is no dependency.
LITELLM_VERSION := 1.106.2
LITELLM_READY := .venv-litellm/.ready-$(LITELLM_VERSION)
$(LITELLM_READY):
	@echo "setting up .venv-litellm (740 MB)"
	@rm -rf .venv-litellm && $(PYTHON) -m venv .venv-litellm && echo '*' > .venv-litellm/.gitignore
	@.venv-litellm/bin/python -m pip install -q --disable-pip-version-check 'litellm[proxy]==$(LITELLM_VERSION)'
	@touch $@

litellm: .venv/.ready-test $(LITELLM_READY)  ## both SDKs against LiteLLM's proxy, an independent model server: each call is booked once
	SWARM_TEST_LITELLM=.venv-litellm/bin/litellm $(BIN)/python -m pytest -q tests/labs/litellm

clean:  ## remove the environment, the demo's output and its Redis data
	rm -rf .venv .venv-litellm .venv-peers .venv-peers-* .swarm out
