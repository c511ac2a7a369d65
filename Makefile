PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# the package imports as polyp_difom; type checkers find it through this folder of links
.types: 
	mkdir -p .types/polyp_difom
	for part in cache cli pipeline; do ln -sfn ../../$$part .types/polyp_difom/$$part; done

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev,litemedsam]'
	touch $@
