"""Checks with the real tensorboard that a training's event files hold what its metrics.jsonl holds.

    python3 check_records.py TRAINING

Needs tensorboard. Prints the number of values compared by tag and exits non-zero where one differs.
"""

import json
import os
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main():
    folder = sys.argv[1]
    events = EventAccumulator(os.path.join(folder, "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        lines = [json.loads(line) for line in f]
    compared = {}
    for tag in events.Tags()["scalars"]:
        group, name = tag.split("/")
        key = {"loss/total": "loss"}.get(tag, f"validation_{name}" if group == "validation" else name)
        written = {line["step"]: line[key] for line in lines if line.get(key) is not None}
        for event in events.Scalars(tag):
            expected = written.get(event.step)
            if expected is None or abs(event.value - expected) > 1e-6 * max(1.0, abs(expected)):
                sys.exit(f"{tag}, step {event.step}: {event.value} and not {expected}")
            compared[tag] = compared.get(tag, 0) + 1
    print(json.dumps(compared))
    sys.exit(not compared)


if __name__ == "__main__":
    main()
