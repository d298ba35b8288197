# quarterarc in a container, the demo by default (docs/platforms.md):
#   docker build -t quarterarc .                                                    CPU
#   docker build -t quarterarc --build-arg TORCH_INDEX=https://pypi.org/simple .    NVIDIA GPUs
FROM python:3.11-slim

# PyPI has the builds of torch with CUDA, several gigabytes; here are those for the CPU alone
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /build
COPY constraints.txt ./
# a layer of its own, kept when only the source changes
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url "$TORCH_INDEX" torch
COPY LICENSE README.md pyproject.toml ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url "$TORCH_INDEX" .

# any user may write here, so that files in a mounted folder belong to the one of `docker run --user`
RUN mkdir --mode=1777 /work
ENV HOME=/tmp
USER nobody
WORKDIR /work
ENTRYPOINT ["quarterarc"]
CMD ["demo"]
