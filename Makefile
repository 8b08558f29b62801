# make quickstart   the environment, then a study
# make test         the environment, then the tests
# LOCK=locks/gpu.txt on a machine with NVIDIA GPUs; VENV= for another place of the environment

PYTHON ?= python3.11
VENV ?= .venv
LOCK ?= $(if $(wildcard /dev/nvidia0),locks/gpu.txt,locks/cpu.txt)
READY := $(VENV)/ready-$(notdir $(LOCK))

.PHONY: quickstart test environment lock

quickstart: environment
	$(VENV)/bin/dcr-ray sweep search_spaces/quickstart.yaml

test: environment
	$(VENV)/bin/python -m pytest

environment: $(READY)

# The locks name every package, so nothing is resolved (--no-deps). torch comes first, since DeepSpeed is built against
# it. PyPI's torch is the CUDA build: the CPU build is taken from where pip finds it, else from PyTorch's own index.
$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip==26.3 wheel==0.48.0
	grep -E '^(setuptools|ninja|numpy|packaging|psutil|py-cpuinfo|einops|msgpack|hjson|tqdm|[Jj]inja2|pydantic|pydantic.core|typing.extensions|annotated.types|typing.inspection|filelock|fsspec|MarkupSafe|networkx|sympy|mpmath)==' $(LOCK) > $(VENV)/first.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps -r $(VENV)/first.txt
	grep -E '^torch==' $(LOCK) > $(VENV)/torch.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps -r $(VENV)/torch.txt \
	  || $(VENV)/bin/python -m pip install --quiet --no-deps -r $(VENV)/torch.txt --index-url https://download.pytorch.org/whl/cpu
	DS_BUILD_OPS=0 $(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation -r $(LOCK)
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
