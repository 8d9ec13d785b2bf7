"""Measures how far PyTorch's bf16 is from float64 on the golden cases: the bars of `tests/golden/bf16.rs`.

    python3 golden_bf16.py --reference DIR --golden DIR [--device cuda] [--into tests/golden/torch_bf16.json]

`--reference` is the folder of e2llm_torch.py, `--golden` that of the cases. A distance is |theirs - float64| / |float64|
over all tensors of its kind together; `loss` are those of the two losses. With `--into`, the device's distances are
replaced in that file and the other device's kept; without, they are printed.
"""

import argparse
import json
import os
import sys

import torch
from safetensors.torch import load_file


def distance(pairs):
    off = sum(float((a.double().cpu() - b).pow(2).sum()) for a, b in pairs)
    return (off / sum(float(b.pow(2).sum()) for _, b in pairs)) ** 0.5


def measure(reference, folder, device):
    model = reference.load_checkpoint(folder).to(device).bfloat16()
    expected = load_file(os.path.join(folder, "expected.safetensors"))
    numbers = json.load(open(os.path.join(folder, "expected.json")))
    inputs = json.load(open(os.path.join(folder, "inputs.json")))
    batch, windows = ([reference.Example(**e) for e in inputs[k]] for k in ("reasoning", "reconstruction"))
    chunks = [c for e in batch for c in e.chunks]
    out = {}
    with torch.no_grad():
        one = lambda c: torch.tensor([c], device=device)
        hidden = [model.encoder(one(c), torch.ones_like(one(c), dtype=torch.bool))[0] for c in chunks]
        out["hidden"] = distance([(h, expected[f"hidden.{i}"]) for i, h in enumerate(hidden)])
        out["soft"] = distance([(model.soft_tokens(chunks), expected["soft"])])
    reasoning, logits = model.loss(batch)
    reconstruction, _ = model.loss(windows)
    rows = [(logits[i].detach(), expected[f"logits.{i}"]) for i in range(len(batch))]
    out["logits"] = distance([(ours[: len(want)], want) for ours, want in rows])
    losses = ((reasoning, numbers["reasoning"]), (reconstruction, numbers["reconstruction"]))
    out["loss"] = [abs(ours.item() - want) / want for ours, want in losses]
    (reasoning + numbers["lambda"] * reconstruction).backward()
    trained = [(n, p.grad) for n, p in model.named_parameters() if p.requires_grad]
    out["gradients"] = distance([(g, expected[f"grad.{n}"]) for n, g in trained])
    return out


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--reference", required=True)
    arguments.add_argument("--golden", required=True)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--into")
    a = arguments.parse_args()
    sys.path.insert(0, a.reference)
    import e2llm_torch

    found = sorted(f for f in os.listdir(a.golden) if os.path.exists(os.path.join(a.golden, f, "expected.json")))
    mine = {name: measure(e2llm_torch, os.path.join(a.golden, name), a.device) for name in found}
    mine = {"torch": torch.__version__, "cases": mine}
    all_devices = json.load(open(a.into)) if a.into and os.path.exists(a.into) else {}
    text = json.dumps(all_devices | {a.device: mine}, indent=1)
    print(text if not a.into else f"{len(found)} cases on {a.device}")
    if a.into:
        open(a.into, "w").write(text + "\n")
