#!/usr/bin/env bash
# Installs a release build: PREFIX/bin/e2llm-bench and its plugins in PREFIX/lib/e2llm-bench/plugins.
# usage: harness/install.sh [PREFIX]     (default: ~/.local; build first: cargo build --release --workspace)
set -euo pipefail
prefix=${1:-"$HOME/.local"}
built=${CARGO_TARGET_DIR:-"$(dirname "$0")/../target"}/release
[ -x "$built/e2llm-bench" ] || { echo "no build in $built: run cargo build --release --workspace first" >&2; exit 2; }
install -d -m 755 "$prefix/bin" "$prefix/lib/e2llm-bench/plugins"
install -m 755 "$built/e2llm-bench" "$prefix/bin/"
install -m 644 "$built"/libe2llm_task_*.so "$built"/libe2llm_metric_*.so "$prefix/lib/e2llm-bench/plugins/"
echo "installed to $prefix: $("$prefix/bin/e2llm-bench" plugin list | wc -l) plugins"
