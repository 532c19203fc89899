# The worker image for Flink and Dataflow: Beam's SDK image, the locked dependencies, then the code.
# Beam's base image is the larger part; name a mirror or a digest with --build-arg BASE_IMAGE=...
ARG BASE_IMAGE=apache/beam_python3.11_sdk:2.77.0
FROM ${BASE_IMAGE}

# Everything is installed already, so boot need not make an environment at each start (nor could this user).
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 \
    TF_CPP_MIN_LOG_LEVEL=2

WORKDIR /opt/scoring-job

# Before the code, so that a change of code rebuilds only the last layer.
COPY requirements-worker.lock ./
RUN python -m pip install --require-hashes -r requirements-worker.lock

COPY pyproject.toml setup.py ./
COPY job ./job
COPY models ./models
RUN python -m pip install --no-deps --no-build-isolation . \
    && useradd --create-home --uid 10001 worker

# The environment stays root's: a worker reads code and never changes it. The imports are tried from
# outside the sources, so that a package left out of the installation fails here and not on a cluster.
USER 10001
WORKDIR /home/worker
RUN python -c "import apache_beam, keras, pyarrow, tensorflow, job, models"

ENTRYPOINT ["/opt/apache/beam/boot"]
