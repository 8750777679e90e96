# tread-ssm with PyTorch for CUDA (it also computes on CPUs):
#
#   docker build -t tread_ssm .
#   docker run --gpus all --shm-size 8g -v "$PWD:/work" tread_ssm train --config quickstart
#
# Results go to the folder that is mounted at /work.
FROM python:3.12-slim

# The C++ compiler builds the CPU kernels, and Triton calls a C compiler when a kernel first runs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/tread_ssm
RUN pip install --no-cache-dir "/opt/tread_ssm[latents,metrics]"

WORKDIR /work
ENTRYPOINT ["tread-ssm"]
CMD ["--help"]
