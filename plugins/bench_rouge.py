#!/usr/bin/env python3
"""Times ROUGE (rouge1, rouge2, rougeL, rougeLsum with stemmer) on one core: ours, rouge-score-rs, rouge-score.

    pip install rouge-score==0.1.2 rouge-score-rs==0.2.1 zstandard
    cargo build --release -p e2llm-rouge --example bench
    python3 plugins/bench_rouge.py DATA --ours target/release/examples/bench

Pairs are 200-word pieces of the contexts under DATA, once as they are and once with a sentence a line. All three run one
after the other, pinned to the same core where the system allows it; the best of some rounds counts.
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
        start = time.perf_counter()
        for prediction, reference in pairs:
            scorer.score(reference, prediction)
        best = min(best, time.perf_counter() - start)
    return best * 1e6 / len(pairs)


def our_time(command, pairs):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        for prediction, reference in pairs:
            file.write(json.dumps({"prediction": prediction, "references": [reference]}, ensure_ascii=False) + "\n")
        file.flush()
        out = subprocess.run([command, file.name], check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(out.split()[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--ours", default="target/release/examples/bench")
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from rouge_score.rouge_scorer import RougeScorer as Google
    from rouge_score_rs import RougeScorer as Rust

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    flat = list(make_pairs(args.data, args.pairs, args.words, args.seed))
    lines = [tuple(re.sub(r"(?<=[.?!]) ", "\n", text) for text in pair) for pair in flat]
    for name, pairs in (("as it is", flat), ("a sentence a line", lines)):
        ours = our_time(args.ours, pairs)
        rust = python_time(Rust(TYPES, use_stemmer=True), pairs)
        google = python_time(Google(TYPES, use_stemmer=True), pairs[:50])
        print(f"{name}: ours {ours:.1f} us a pair")
        print(f"  rouge-score-rs {rust:9.1f} us, {rust / ours:6.1f} times ours")
        print(f"  rouge-score    {google:9.1f} us, {google / ours:6.1f} times ours")


if __name__ == "__main__":
    main()
