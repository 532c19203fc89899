# worker-cpu and worker-gpu run on Flink, Dataflow and Dask; launcher runs the command. See docs/images.md.
#
# A tag can be moved, a digest cannot: pin it with
#   --build-arg BASE_IMAGE=apache/beam_python3.11_sdk@sha256:...
ARG BASE_IMAGE=apache/beam_python3.11_sdk:2.77.0

FROM ${BASE_IMAGE} AS dependencies
# Everything is installed already, so boot need not make an environment at each start (nor could this user).
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 \
    TF_CPP_MIN_LOG_LEVEL=2
RUN useradd --create-home --uid 10001 worker
WORKDIR /opt/scoring-job
# Before the code, so that a change of code rebuilds only the last, small layers.
COPY requirements-worker.lock ./
RUN python -m pip install --require-hashes -r requirements-worker.lock

# What submitting a job to Dataflow takes on top.
FROM dependencies AS dependencies-launcher
COPY requirements-launcher.lock ./
RUN python -m pip install --require-hashes -r requirements-launcher.lock

# CUDA's libraries come from the index too, so the base is the same and only the driver is the machine's.
FROM dependencies AS dependencies-gpu
COPY requirements-worker-gpu.lock ./
RUN python -m pip install --require-hashes -r requirements-worker-gpu.lock
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM dependencies-gpu AS worker-gpu
COPY pyproject.toml setup.py LICENSE ./
COPY job ./job
RUN python -m pip install --no-deps --no-build-isolation . && rm -rf build ./*.egg-info
# The environment stays root's: a worker reads code and never changes it. The imports are tried from
# outside the sources, so that a package left out of the installation fails here and not on a cluster.
USER 10001
WORKDIR /home/worker
RUN python -c "import job.launch.score, job.scoring.worker, apache_beam, keras, pyarrow, tensorflow, distributed"
ENTRYPOINT ["/opt/apache/beam/boot"]

# The same steps: a stage can only follow one other.
FROM dependencies AS worker-cpu
COPY pyproject.toml setup.py LICENSE ./
COPY job ./job
RUN python -m pip install --no-deps --no-build-isolation . && rm -rf build ./*.egg-info
USER 10001
WORKDIR /home/worker
RUN python -c "import job.launch.score, job.scoring.worker, apache_beam, keras, pyarrow, tensorflow, distributed"
ENTRYPOINT ["/opt/apache/beam/boot"]

# It reads the model before anything is scored, so it needs what a worker needs, in the same versions.
FROM dependencies-launcher AS launcher
COPY pyproject.toml setup.py LICENSE ./
COPY job ./job
RUN python -m pip install --no-deps --no-build-isolation . && rm -rf build ./*.egg-info
USER 10001
WORKDIR /home/worker
RUN python -c "import job.launch.score, job.scoring.worker, apache_beam, keras, pyarrow, tensorflow, distributed" \
    && python -c "import apitools, google.cloud.dataflow, google.cloud.storage, google_auth_httplib2"
ENTRYPOINT ["python", "-m", "job"]
CMD ["--help"]
