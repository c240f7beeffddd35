# Studies in a container, with results in the folder you stand in:
#
#     docker build -t nanoscale .
#     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" nanoscale study quick
#
# pip's torch for Linux brings CUDA's libraries, about 5 GB. Another build (for CPUs alone, say) comes
# by the arguments that https://pytorch.org/get-started/locally/ prints:
#
#     docker build --build-arg PIP_ARGS="..." -t nanoscale .
FROM python:3.11-slim

# The compiler makes the CPU's training step on first use, for the very CPU that runs it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*

ARG PIP_ARGS=""
COPY . /src
# hadolint ignore=SC2086
RUN pip install --no-cache-dir ${PIP_ARGS} -c /src/constraints.txt /src

WORKDIR /work
ENTRYPOINT ["nanoscale"]
CMD ["--help"]
