#!/usr/bin/env bash
# Runs the test of the backend `openai` against a real server: llama-cpp-python's, with the SmolLM2 of our own cache, on
# loopback. Installs llama-cpp-python (built from source where pip has no wheel: about 10 minutes on two cores) into
# target/llama-server. Not part of CI. Needs `cargo build --release --workspace` and a fetched smollm2-135m-instruct.
set -euo pipefail
cd "$(dirname "$0")/.."

bench=target/release/e2llm-bench
port=${PORT:-8127}
venv=${LLAMA_VENV:-target/llama-server}
model=$("$bench" model info smollm2-135m-instruct --json |
  python3 -c 'import json,sys; f=json.load(sys.stdin)["files"]; print(next(x["path"] for x in f if x["path"].endswith(".gguf")))')

if [ ! -x "$venv/bin/python" ]; then python3 -m venv "$venv"; fi
if ! "$venv/bin/python" -c 'import llama_cpp.server' 2>/dev/null; then
  # Not the machine's own instruction set: some clouds announce instructions that they do not have.
  CMAKE_ARGS="${CMAKE_ARGS:--DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON}" \
    nice -n 15 "$venv/bin/python" -m pip install --quiet "llama-cpp-python[server]~=0.3.16"
fi

"$venv/bin/python" -m llama_cpp.server --model "$model" --host 127.0.0.1 --port "$port" --n_ctx 2048 \
  --n_threads 2 --model_alias smollm2 >"$venv/server.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 120); do
  if curl --silent --fail "http://127.0.0.1:$port/v1/models" >/dev/null; then break; fi
  kill -0 "$server" || { tail -20 "$venv/server.log"; exit 1; }
  sleep 1
done

LLAMA_SERVER="http://127.0.0.1:$port/v1" cargo test --release --workspace --test e2e -- --ignored a_real_server
