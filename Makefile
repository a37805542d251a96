# Every target that needs the environment makes it first: .venv, from requirements.lock.
PYTHON ?= python3.12
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install spark demo test nightly lint format bench lock clean

help: ## Say what each target does.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv from the lock file and install jaxrec into it, editable.

$(STAMP): requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## Prepare, train, evaluate and recommend on an invented data set.
	rm -rf .demo
	$(BIN)/python scripts/prepare.py --input=synthetic --output=.demo/data
	$(BIN)/python scripts/train.py --config=configs/sasrec.py --data=.demo/data --workdir=.demo/run
	$(BIN)/python scripts/evaluate.py --workdir=.demo/run --report=.demo/report.html
	$(BIN)/python scripts/recommend.py --workdir=.demo/run --user=1 --user=2 --user=3 -k 5

test: install ## Run the tests, except the slow ones.
	$(BIN)/pytest -n 2 --dist=worksteal -m "not slow"

nightly: install spark ## Run all tests, then the quick ones as on processors with fewer instructions.
	$(BIN)/pytest -n 2 --dist=worksteal
	for isa in AVX2 SSE4_2; do \
		XLA_FLAGS=--xla_cpu_max_isa=$$isa $(BIN)/pytest -n 2 --dist=worksteal -m "not slow" || exit 1; \
	done

spark: install ## Add pyspark where Java is, without which the tests of Spark skip.
	@if command -v java > /dev/null; then $(BIN)/python -m pip install --quiet -e ".[spark]"; \
	else echo "there is no Java: the tests of Spark skip"; fi

lint: install ## Check style, formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/prepare.py

format: install ## Fix what ruff can fix, and format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Run every benchmark; each prints one JSON object a line.
	@set -e; for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file; done

lock: install ## Rewrite requirements.lock after a change of dependencies (ARGS=--upgrade for newer releases).
	$(BIN)/uv pip compile pyproject.toml --extra dev --output-file requirements.lock \
		--universal --python-version 3.12 --generate-hashes --no-annotate --no-config \
		--quiet --custom-compile-command "make lock" $(ARGS)

clean: ## Remove the environment and everything that was built or cached.
	rm -rf .venv .demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
