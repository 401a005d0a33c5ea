# docker build -t llgae . && docker run --rm -v "$PWD:/work" llgae train -c smoke
# CPU only. /work is the working folder: configs, data and checkpoints are read and written there.
FROM python:3.11-slim
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY llgae_cli llgae_cli
COPY configs configs
RUN pip install --no-cache-dir --constraint constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu" "torchvision==0.28.0+cpu" . \
    && rm -rf /source
RUN useradd --create-home llgae
USER llgae
WORKDIR /work
ENTRYPOINT ["llgae"]
CMD ["--help"]
