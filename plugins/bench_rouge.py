#!/usr/bin/env python3
"""Times ROUGE (rouge1, rouge2, rougeL, rougeLsum with stemmer): ours, rouge-score-rs, rouge-score.

    pip install rouge-score==0.1.2 rouge-score-rs==0.2.1 zstandard
    cargo build --release --workspace && cargo build --release -p e2llm-rouge --example bench
    python3 plugins/bench_rouge.py DATA

Pairs are 200-word pieces of the contexts under DATA, once as they are and once with a sentence a line. Ours is timed
three times: the crate alone, and `e2llm-bench metric` from a JSON Lines file to JSON Lines, with one thread and with as
many as there are cores. All run one after the other, pinned to the same core where the system allows it (but for the
last); the best of some rounds counts, in processor time where one core is used, so that a busy machine matters less.
"""

import argparse
import io
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

ROUNDS = 3
CRATE_ROUNDS = 5  # of plugins/rouge/core/examples/bench.rs
TYPES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def contexts(data, words):
    import zstandard

    seen = set()
    for path in sorted(data.rglob("*.jsonl.zst")):
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(io.BytesIO(path.read_bytes()))
        for line in io.TextIOWrapper(reader, encoding="utf-8", newline="\n"):
            context = json.loads(line)["context"].split(maxsplit=20_000)
            key = tuple(context[:50])
            if len(context) > 3 * words and key not in seen:
                seen.add(key)
                yield context


def make_pairs(data, count, words, seed):
    rng = random.Random(seed)
    documents = list(contexts(data, words))
    if not documents:
        sys.exit(f"no .jsonl.zst with contexts of {3 * words} words under {data}")
    for _ in range(count):
        document = rng.choice(documents)
        places = [rng.randrange(len(document) - words) for _ in range(2)]
        yield tuple(" ".join(document[at : at + words]) for at in places)


def python_time(scorer, pairs):
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for prediction, reference in pairs:
            scorer.score(reference, prediction)
        best = min(best, time.process_time() - start)
    return best * 1e6 / len(pairs)


def write(file, pairs):
    for prediction, reference in pairs:
        file.write(json.dumps({"prediction": prediction, "references": [reference]}, ensure_ascii=False) + "\n")
    file.flush()


def spent(run):
    """Processor time of the processes that `run` starts and waits for."""
    before = os.times()
    run()
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def crate_time(command, path, pairs):
    """Of the crate alone; its program reads the file once and scores it CRATE_ROUNDS times."""
    run = lambda: subprocess.run([command, path], check=True, stdout=subprocess.DEVNULL)
    return spent(run) * 1e6 / (CRATE_ROUNDS * pairs)


def metric_time(bench, path, pairs, threads):
    """Processor and wall-clock time a pair of the whole program."""
    names = ",".join(f"{name}+stem" for name in TYPES)
    command = [bench, "metric", names, "--input", path, "--threads", str(threads)]
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    best = [float("inf")] * 2
    for _ in range(ROUNDS):
        if cores and threads > 1:
            os.sched_setaffinity(0, range(os.cpu_count()))
        start = time.perf_counter()
        busy = spent(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
        best = [min(best[0], busy), min(best[1], time.perf_counter() - start)]
        if cores:
            os.sched_setaffinity(0, cores)
    return [seconds * 1e6 / pairs for seconds in best]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--crate", default="target/release/examples/bench")
    parser.add_argument("--bench", default="target/release/e2llm-bench")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from rouge_score.rouge_scorer import RougeScorer as Google
    from rouge_score_rs import RougeScorer as Rust

    threads = os.cpu_count() or 1
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    flat = list(make_pairs(args.data, args.pairs, args.words, args.seed))
    lines = [tuple(re.sub(r"(?<=[.?!]) ", "\n", text) for text in pair) for pair in flat]
    for name, pairs in (("as it is", flat), ("a sentence a line", lines)):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
            write(file, pairs)
            crate = crate_time(args.crate, file.name, len(pairs))
            one, _ = metric_time(args.bench, file.name, len(pairs), 1)
            _, all_cores = metric_time(args.bench, file.name, len(pairs), threads)
        rust = python_time(Rust(TYPES, use_stemmer=True), pairs)
        google = python_time(Google(TYPES, use_stemmer=True), pairs[:50])
        print(f"{len(pairs)} pairs of {args.words} words, {name}, microseconds a pair:")
        print(f"  ours, the crate            {crate:9.1f}")
        print(f"  ours, `metric`, one thread {one:9.1f}")
        print(f"  ours, `metric`, {threads} threads  {all_cores:9.1f} (wall clock)")
        for other, took in (("rouge-score-rs 0.2.1", rust), ("rouge-score 0.1.2", google)):
            times = f"{took / crate:6.1f} times the crate, {took / one:6.1f} times `metric`"
            print(f"  {other:26} {took:9.1f}, {times}", flush=True)


if __name__ == "__main__":
    main()
