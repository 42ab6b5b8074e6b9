# The page for self-hosting. On a CPU:   docker build -t modelassay .
# On a CUDA GPU:                         docker build -t modelassay:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# compose.yaml runs either. scripts/container.py checks this file, without Docker too.
FROM python:3.12-slim

# Where pip finds torch: its builds for the CPU, or those for a version of CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /app
COPY requirements.txt constraints.txt ./
RUN pip install --extra-index-url "$TORCH_INDEX" --constraint constraints.txt --requirement requirements.txt

COPY app.py agents.md README.md LICENSE ./
COPY src/ src/
COPY baselines/ baselines/
COPY calibrations/ calibrations/
COPY classifiers/ classifiers/
COPY concepts/ concepts/
COPY dictionaries/ dictionaries/
COPY monitors/ monitors/
COPY probes/ probes/
COPY reports/ reports/
COPY examples/ examples/

# Models and what is built from them; a volume keeps them between runs.
ENV MODELASSAY_CACHE=/data/modelassay HF_HOME=/data/huggingface GRADIO_TEMP_DIR=/tmp/gradio
RUN useradd --create-home --uid 1000 visitor && mkdir -p /data && chown visitor /data
USER visitor
VOLUME /data

ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860 GRADIO_ANALYTICS_ENABLED=False
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/gradio_api/info', timeout=9)"]
CMD ["python", "app.py"]
