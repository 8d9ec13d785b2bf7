"""Lets E2LLM on the real base models learn eight small records by heart, and looks whether it did.

    python3 overfit.py --bench target/release/e2llm-bench --work NEW [--device cpu] [--steps 40]

Everything goes through the program as a user would use it: prepare from a task, train, evaluate. Expected: reasoning loss under
0.1 and reconstruction of the chunks (about 100 tokens) under 0.5 nats/token at the end, and every greedy answer exact. Takes
five minutes on two cores. Prints one JSON line and exits non-zero where that is not so.
"""

import argparse
import json
import os
import subprocess
import sys

RECORDS = [
    ("The lighthouse on Gull Rock was automated in 1987. Its last keeper, Tomas Brandvold, had tended the lamp for "
     "thirty-one years and kept bees on the leeward slope. When the relay box was fitted he packed his logbooks, gave the "
     "hives to the ferry captain, and moved in with his sister in Alta, where he took up repairing clocks.",
     "Who was given the beehives?", "the ferry captain"),
    ("At the spring fair the bakers of Lower Wick judge loaves by ear. A crust is tapped with a copper spoon, and three "
     "elders write down the note they hear. In the year of the flood every loaf was damp and dull, so the prize went to "
     "Ines Quill, who had brought a drum and said nothing at all until the cheering stopped.",
     "Who won the prize in the year of the flood?", "Ines Quill"),
    ("The committee met on a Thursday to choose a colour for the new trams. Green was thought too sad, red too loud, and "
     "nobody would defend brown. After two hours the caretaker, who was waiting to lock up, remarked that the rails were "
     "silver already. The minutes record that silver was adopted without a vote.",
     "Which colour was chosen for the trams?", "silver"),
    ("Doctor Okonjo's expedition carried eleven barometers up the glacier, of which nine were broken before the second "
     "camp. The tenth was traded for a sledge dog called Button. With the one that was left she measured the pass at 3,412 "
     "metres, a figure that satellites have since corrected by less than a metre.",
     "What was the sledge dog called?", "Button"),
    ("When the old theatre was pulled down, workmen found a piano bricked into the north wall. It was in tune. The owner "
     "of the demolition firm, Mr Haverkamp, had it taken to his garage and learned to play a single waltz, which he "
     "performed every New Year's Eve for the neighbours and, on one occasion, for a visiting bishop.",
     "Where in the theatre was the piano found?", "in the north wall"),
    ("Cobalt, the station's cat, was entered in the payroll by mistake in March and received a salary until August. The "
     "money was never claimed. An auditor proposed to dismiss the animal, but the stationmaster argued that it had not "
     "once been late, and the sum was spent on a heated basket beside the ticket window.",
     "What was the money spent on?", "a heated basket"),
    ("The river Sarn changes its course every few decades, and the village of Hollin has been on both banks. Its chapel was "
     "built with two doors for that reason. Letters are addressed to Hollin Left or Hollin Right according to the season, "
     "and the postwoman, Maud Teller, owns the only boat that is exempt from the toll.",
     "Who owns the boat that pays no toll?", "Maud Teller"),
    ("In the winter of the long strike the printers of the Evening Courier brought out a single issue by hand. It had four "
     "pages, no advertisements, and a recipe for turnip soup on the front. Forty thousand copies were sold, and the editor "
     "kept turnips in the masthead for the rest of the year as a sign of gratitude.",
     "What was the recipe on the front page for?", "turnip soup"),
]

CONFIG = """
[model]
adapter = "mean"
soft_tokens_per_chunk = 16
output_scale = true
[model.encoder_lora]
r = 16
lora_alpha = 32
target_modules = ["query", "key", "value", "dense"]
[model.decoder_lora]
r = 16
lora_alpha = 32
target_modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
[[phase]]
steps = {steps}
reasoning_batch = 8
reconstruction_batch = 8
lambda = 1.0
[optimizer]
lr = 2e-3
warmup_steps = 10
[compute]
device = "{device}"
[validation]
every = 0
items = 1
patience = 0
[output]
checkpoint_every = 0
"""


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--bench", required=True)
    a.add_argument("--work", required=True)
    a.add_argument("--device", default="cpu")
    a.add_argument("--steps", type=int, default=40)
    args = a.parse_args()
    at = lambda *names: os.path.join(args.work, *names)
    os.makedirs(at("records", "narrativeqa"))
    with open(at("records", "narrativeqa", "test.jsonl"), "w") as f:
        for i, (context, question, answer) in enumerate(RECORDS):
            line = dict(id=str(i), context=context, prompt=question, answers=[answer], meta=dict(document_id=str(i)))
            f.write(json.dumps(line) + "\n")
    with open(at("overfit.toml"), "w") as f:
        f.write(CONFIG.format(steps=args.steps, device=args.device))
    run = lambda *command: subprocess.run([args.bench, *command], check=True, stdout=subprocess.DEVNULL)
    run("prepare", "-q", "--from-task", "narrativeqa:test", "--data", at("records"), "--validation", "0", "--out", at("data"))
    run("train", "--config", at("overfit.toml"), "--data", at("data"), "--out", at("train"))
    run("run", "--tasks", "narrativeqa", "--metrics", "em_squad", "--data", at("records"), "--backend", "e2llm", "--model",
        at("train", "last"), "--device", args.device, "--out", at("run"), "-q")
    with open(at("train", "metrics.jsonl")) as f:
        last = [line for line in map(json.loads, f) if "loss" in line][-1]
    with open(at("run", "results.json")) as f:
        exact = json.load(f)["tasks"][0]["slices"][0]["metrics"][0]["value"]
    ok = last["reasoning"] < 0.1 and last["reconstruction"] < 0.5 and exact == 100.0
    row = dict(steps=last["step"], reasoning=last["reasoning"], reconstruction=last["reconstruction"], exact=exact, ok=ok)
    print(json.dumps(row))
    sys.exit(not ok)


if __name__ == "__main__":
    main()
