#!/usr/bin/env python3
"""What the harness itself takes: a run of the backend `echo` over many small records.

Prints microseconds per sample (the whole program: reading twice, asking, scoring, storing, intervals) and the peak of
resident memory for each number of records, and the time of `--help`. Needs `cargo build --release --workspace`; not part of
CI, since times depend on the machine.

usage: tests/overhead.py [--bench target/release/e2llm-bench] [--records 10000,100000] [--questions 10]
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path


def write_records(folder, n, questions):
    folder.mkdir(parents=True)
    with open(folder / "test.jsonl", "w", encoding="utf-8") as out:
        for i in range(n):
            document = i // questions
            things = ["maps", "keys", "old letters", "boats and ropes"][i * 7919 % 4]
            record = {
                "id": f"q{i}",
                "context": f"Story {document}. The captain found {i} {things} in the harbour and gave them away.",
                "prompt": f"How many {things} were found in {i}?",
                "answers": [f"{i} {things}", str(i)],
                "meta": {"document_id": f"d{document}"},
            }
            out.write(json.dumps(record) + "\n")


def run(command):
    """Seconds, seconds of processor time, and the peak of resident memory in MiB."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"failed: {' '.join(map(str, command))}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="target/release/e2llm-bench")
    parser.add_argument("--records", default="10000,100000")
    parser.add_argument("--questions", type=int, default=10, help="of each document")
    args = parser.parse_args()
    bench = Path(args.bench).resolve()
    helps = [run([bench, "--help"])[0] for _ in range(20)]
    print(f"--help: {1000 * statistics.median(helps):.1f} ms (median of {len(helps)})")
    with tempfile.TemporaryDirectory() as folder:
        for n in map(int, args.records.split(",")):
            data = Path(folder) / f"data-{n}"
            write_records(data / "narrativeqa", n, args.questions)
            command = [bench, "run", "-q", "--tasks", "narrativeqa", "--backend", "echo", "--data", data]
            seconds, busy, peak = run([*command, "--out", Path(folder) / f"run-{n}"])
            each = f"{1e6 * seconds / n:.1f} us a sample ({1e6 * busy / n:.1f} us of processor time)"
            print(f"{n} samples: {each}, peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
