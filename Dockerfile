# CPU image.
#   docker build -t neural-surface .
#   docker run --rm -v "$PWD/inputs:/app/inputs" -v "$PWD/outputs:/app/outputs" --user "$(id -u):$(id -g)" neural-surface \
#       --train dataset.root_dir=inputs/scan65 trainer.max_minutes=10
FROM python:3.12-slim

# for the CPU build of torch: --build-arg WHEELS="--extra-index-url URL-OF-PYTORCH-CPU-WHEELS"; the default index has the CUDA build, gigabytes
ARG WHEELS=""
# optional packages (pyproject.toml): --build-arg EXTRAS="pycolmap==4.2.1 pillow-heif==1.8.1"
ARG EXTRAS=""

WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir $WHEELS -r requirements.lock $EXTRAS
COPY . .

# kernels are compiled at the first run and kept here; any user may write
ENV HOME=/tmp/home USER=user PYTHONUNBUFFERED=1
RUN mkdir -p /tmp/home && chmod 1777 /tmp/home

ENTRYPOINT ["python", "run.py"]
CMD ["--help"]
