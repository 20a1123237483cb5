# make demo   installs everything and shows the main workflow: rows → plan → training → evaluation
# make test   installs everything and runs all checks, in about six minutes on two cores after the installation
# make test-all the same with every combination and the long random runs, in three quarters of an hour
# make test-oldest-torch  the planner's fake mode, which uses private parts of PyTorch, on the oldest supported one
# make test-lm-eval  the suite lm-eval and the server, compared with lm-eval's own model, in an environment of its own
# make coverage lists the lines that no test executes
# make mutants puts single-line bugs into the source and lists those that no test detects (an hour); see docs/testing.md
# make matrix tests every method at every precision on three families and writes docs/matrix.md (half an hour)
# make schema writes docs/recipe.md, the recipe's JSON schema and the list of methods, after a change of a field or a method
# make bench  speed and memory compared with other trainers, in their own environments
# PYTHON=python3.12 make … selects the interpreter (3.11 or newer).

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The many processes that tests start would otherwise compile every module again.
unexport PYTHONDONTWRITEBYTECODE
ROWS ?=
MUTANTS ?= --count 300

.PHONY: setup demo test test-all test-oldest-torch test-lm-eval coverage mutants matrix schema bench check embedded-base clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt hatch_build.py $(wildcard src/tunesmith/*/native/*.[ch]) $(wildcard src/tunesmith/engine/*arena*.[cp]*)
	@test -n "$(PYTHON)" || { echo "Tunesmith needs Python 3.11 or newer, but PATH has none. Try: make PYTHON=/path/to/python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(READY)
	$(BIN)/tunesmith demo

test: check
	$(BIN)/python -m pytest

test-all: check
	$(BIN)/python -m pytest -m "" --timeout 900

# The other packages are those of the first environment. OLDEST_TORCH may add an index that has a build for CPUs.
OLDEST := .venv-oldest-torch
OLDEST_TORCH ?= torch==2.11.0
test-oldest-torch: $(READY)
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet $(OLDEST_TORCH)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $(OLDEST)/others.pth
	mv $(OLDEST)/others.pth $$($(OLDEST)/bin/python -c 'import site; print(site.getsitepackages()[0])')
	PYTHONPATH=src $(OLDEST)/bin/python -m pytest -m "" tests/planner/test_fake_mode.py

# lm-eval's dependencies need an older python-dateutil than constraints.txt has.
LM_EVAL := .venv-lm-eval
test-lm-eval: $(READY)
	test -x $(LM_EVAL)/bin/python || $(PYTHON) -m venv $(LM_EVAL)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $(LM_EVAL)/others.pth
	mv $(LM_EVAL)/others.pth $$($(LM_EVAL)/bin/python -c 'import site; print(site.getsitepackages()[0])')
	$(LM_EVAL)/bin/python -m pip install --quiet lm-eval==0.4.13 python-dateutil==2.9.0.post0
	PYTHONPATH=src $(LM_EVAL)/bin/python -m pytest -m "" -n 0 tests/evaluation/suites/test_lm_eval.py

coverage: $(READY)
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

mutants: $(READY)
	$(BIN)/python tests/mutants.py $(MUTANTS)

matrix: $(READY)
	$(BIN)/python tests/matrix_page.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers auto
	$(BIN)/lint-imports

schema: $(READY)
	$(BIN)/tunesmith schema --markdown --output docs/recipe.md
	$(BIN)/python -c 'import json; from tunesmith.config.schema import STORED, schema_of_classes; \
	STORED.write_text(json.dumps(schema_of_classes(), indent=2) + "\n", encoding="utf-8")'
	$(BIN)/python -c 'import json; from tunesmith.config.method_list import STORED, methods_to_store; \
	STORED.write_text(json.dumps(methods_to_store(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")'

bench: $(READY)
	$(BIN)/python benchmarks/train_speed.py $(if $(ROWS),--rows $(ROWS))

# Takes some hours: downloads Debian's documentation, trains tokenizer and model. Finished steps are skipped; training resumes.
BUILD := recipes/embedded-base/build
embedded-base: $(READY)
	$(BIN)/python -m pip install --quiet lxml
	test -s $(BUILD)/corpus/corpus.json || $(BIN)/python recipes/embedded-base/corpus.py --out $(BUILD)/corpus
	test -s $(BUILD)/architecture/tokenizer.json || $(BIN)/python recipes/embedded-base/tokenizer.py --corpus $(BUILD)/corpus --out $(BUILD)/architecture
	cp recipes/embedded-base/config.json $(BUILD)/architecture/
	test -s $(BUILD)/instruct/instruct.jsonl || $(BIN)/python recipes/embedded-base/instructions.py --corpus $(BUILD)/corpus --out $(BUILD)/instruct
	test -e $(BUILD)/pretrained/model || { test -e $(BUILD)/pretrained/recipe.yaml && $(BIN)/tunesmith train --resume $(BUILD)/pretrained; } || $(BIN)/tunesmith train recipes/embedded-base/pretrain.yaml --run $(BUILD)/pretrained
	test -e $(BUILD)/instructed/model || { test -e $(BUILD)/instructed/recipe.yaml && $(BIN)/tunesmith train --resume $(BUILD)/instructed; } || $(BIN)/tunesmith train recipes/embedded-base/instruct.yaml --run $(BUILD)/instructed
	$(BIN)/python recipes/embedded-base/publish.py --build $(BUILD) --out src/tunesmith/models/embedded

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .coverage*
