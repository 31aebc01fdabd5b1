# make install: a virtual environment with all dependencies; does nothing if they are there
# make train:   install, train the embedded default, print its bits/dim, write samples
# make test:    install, lint, run the suite

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/vp_digits

.PHONY: install train test

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

train: install
	$(BIN)/python scripts/train.py --config=configs/vp_digits.py --workdir=$(RUN)
	$(BIN)/python scripts/eval.py --workdir=$(RUN) --metric=bpd
	$(BIN)/python scripts/sample.py --workdir=$(RUN) --n=64 --out=$(RUN)/samples.png

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
