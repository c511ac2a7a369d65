# make demo | make test | make lint | make extract-features DATA=... CACHE=...
PYTHON ?= python3
VENV   ?= .venv
DATA   ?= data/synthetic
CACHE  ?= cache/$(shell basename "$(firstword $(DATA))" | tr 'A-Z' 'a-z').zarr
TEACHERS ?= litemedsam
SIZE   ?= 352
VIEWS  ?= 4
LIMIT  ?=
BIN    := $(VENV)/bin
RUN    := $(BIN)/polyp-difom
DEMO   := runs/demo

.PHONY: demo test torture load reproduce lint extract-features install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev,litemedsam,students,export,openvino,video,dicom,sweep,ray,s3]'
	touch $@

# Two small networks from the same frames, one taught and one not, on a page with pictures. No GPU, no data, no hub.
demo: $(VENV)/.installed data/demo data/demo-test
	$(RUN) extract --data data/demo --cache cache/demo.zarr --size 128 --views 2 --basis-frames 24
	$(RUN) distill --cache cache/demo.zarr --student unet:16 --objective none       --epochs 40 --batch-size 8 --overwrite -o $(DEMO)-control
	$(RUN) distill --cache cache/demo.zarr --student unet:16 --objective multiscale --epochs 40 --batch-size 8 --overwrite -o $(DEMO)-distilled
	$(RUN) evaluate $(DEMO)-control   --data data/demo-test --split all --quiet
	$(RUN) evaluate $(DEMO)-distilled --data data/demo-test --split all --quiet
	$(RUN) report $(DEMO)-distilled $(DEMO)-control -o $(DEMO).html

data/demo: | $(VENV)/.installed
	$(RUN) data synth $@ --count 160

data/demo-test: | $(VENV)/.installed
	$(RUN) data synth $@ --count 40 --seed 1

data/synthetic: | $(VENV)/.installed
	$(RUN) data synth $@

extract-features: $(VENV)/.installed $(filter data/synthetic,$(DATA))
	$(RUN) extract $(foreach folder,$(DATA),--data "$(folder)") --teachers $(TEACHERS) --cache $(CACHE) --size $(SIZE) --views $(VIEWS) $(if $(LIMIT),--limit $(LIMIT))

test: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# opening and reading a store of 100,000 samples, 1,000 opens, figures and a page of 10,000 frames: what they cost
load: $(VENV)/.installed
	$(BIN)/python -m tests.faults.load

# make reproduce FOLDER=/tmp/small > here.json: digests of all that the flow makes; the same in another environment of this machine
reproduce: $(VENV)/.installed
	@$(BIN)/python -m tests.reproduce $(or $(FOLDER),/tmp/polyp-difom-reproduce)

# make torture COUNT=300 SEED=0 MINUTES=60 [DATA=folder]: kills, full and read-only disks, damaged stores, hostile files; a table
torture: $(VENV)/.installed
	$(BIN)/python -m tests.faults.torture --count $(or $(COUNT),300) --seed $(or $(SEED),0) --minutes $(or $(MINUTES),60) \
		$(if $(filter-out data/synthetic,$(DATA)),--data $(DATA))

# the package imports as polyp_difom; the type checker finds it through a folder of links
lint: $(VENV)/.installed
	mkdir -p .types/polyp_difom
	for part in cache cli pipeline; do ln -sfn ../../$$part .types/polyp_difom/$$part; done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .types/polyp_difom
	$(BIN)/pip check

clean:
	rm -rf $(VENV) .types build *.egg-info
