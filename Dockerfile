# mldm-plugin on a GPU. In a clone, with Docker and NVIDIA's container toolkit:
#   docker build -t mldm .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/runs" mldm mldm doctor
# With the networks of the losses inside (`mldm weights list` shows their licences):
#   docker build --build-arg WEIGHTS="vgg16 alexnet dlib_resnet mtcnn" -t mldm .
# torch 2.6 is the oldest that the plugin runs on; another tag of the same image is chosen with --build-arg BASE=….
ARG BASE=pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime
FROM ${BASE}

# Which extras of pyproject.toml to install, and which weights to fetch while building (`all` for every one).
ARG EXTRAS=train,data
ARG WEIGHTS=

# Weights of the plugin stay in the image; what diffusers downloads goes to the mounted folder and is kept.
ENV MLDM_WEIGHTS=/opt/mldm/weights \
    HF_HOME=/runs/.cache/huggingface \
    PIP_NO_CACHE_DIR=1

COPY . /tmp/mldm-plugin
# The image's own torch and torchvision are kept: they are built for its CUDA.
RUN pip freeze | grep -E '^(torch|torchvision)==' > /tmp/pins.txt \
 && pip install --constraint /tmp/pins.txt "/tmp/mldm-plugin[${EXTRAS}]" \
 && rm -rf /tmp/mldm-plugin /tmp/pins.txt
RUN if [ -n "${WEIGHTS}" ]; then mldm weights fetch ${WEIGHTS}; fi

WORKDIR /runs
CMD ["mldm", "--help"]
