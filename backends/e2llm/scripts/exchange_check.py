"""Checks exported models with the programs they are for: transformers and peft.

    python3 exchange_check.py --bench target/release/e2llm-bench --checkpoint CHECKPOINT --encoder FOLDER --work NEW

Exports a trained E2LLM checkpoint (`model convert --to peft`, `model merge-lora`), loads base + adapter with peft and the
merged folders with transformers, and compares their outputs in float32; then lets peft write the adapter back, imports it
(`model convert --from-peft`) and compares every tensor. Needs torch, transformers, peft and safetensors. Prints one JSON line
and exits non-zero where logits or states differ by more than 1e-4 (relative, norm-wise) or a tensor does not come back.
"""

import argparse
import json
import os
import subprocess
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

TEXT = "The meeting was adjourned at noon; nobody had asked about the budget, although 12 people had read it."


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def base_model(args):
    """The decoder without any update, in HF layout: its adapter with a zero matrix, merged."""
    folder = os.path.join(args.work, "zero")
    source = os.path.join(args.work, "peft", "decoder")
    os.makedirs(folder)
    with open(os.path.join(source, "adapter_config.json")) as f:
        config = f.read()
    with open(os.path.join(folder, "adapter_config.json"), "w") as f:
        f.write(config)
    tensors = load_file(os.path.join(source, "adapter_model.safetensors"))
    zeros = {n: torch.zeros_like(t) if ".lora_B." in n else t for n, t in tensors.items()}
    save_file(zeros, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
    out = os.path.join(args.work, "base")
    run(args.bench, "model", "merge-lora", folder, "--out", out)
    return out


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
def decoders(args):
    """Logits of base + adapter by peft, and of the merged folder by transformers."""
    base, merged = base_model(args), os.path.join(args.work, "merged", "decoder")
    tokenizer = AutoTokenizer.from_pretrained(merged)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    bare = plain(ids).logits
    adapted = PeftModel.from_pretrained(plain, os.path.join(args.work, "peft", "decoder")).eval()
    adapted.save_pretrained(os.path.join(args.work, "back", "decoder"))
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    return distance(adapted(ids).logits, whole(ids).logits), distance(bare, whole(ids).logits)


@torch.no_grad()
def encoders(args):
    """Last hidden states of the encoder: base weights + adapter by peft, and the merged folder by transformers."""
    merged = os.path.join(args.work, "merged", "encoder")
    ids = AutoTokenizer.from_pretrained(merged)(TEXT, return_tensors="pt")
    whole = AutoModel.from_pretrained(merged, dtype=torch.float32).eval()
    states = whole(**ids).last_hidden_state
    plain = AutoModel.from_pretrained(args.encoder, dtype=torch.float32).eval()
    adapted = PeftModel.from_pretrained(plain, os.path.join(args.work, "peft", "encoder")).eval()
    adapted.save_pretrained(os.path.join(args.work, "back", "encoder"))
    return distance(adapted(**ids).last_hidden_state, states)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--bench", required=True)
    a.add_argument("--checkpoint", required=True)
    a.add_argument("--encoder", required=True, help="the encoder's folder in HF layout")
    a.add_argument("--work", required=True)
    args = a.parse_args()
    os.makedirs(args.work)
    at = lambda name: os.path.join(args.work, name)
    run(args.bench, "model", "convert", args.checkpoint, "--to", "peft", "--out", at("peft"))
    run(args.bench, "model", "merge-lora", args.checkpoint, "--out", at("merged"))
    decoder, moved = decoders(args)
    encoder = encoders(args)
    run(args.bench, "model", "convert", args.checkpoint, "--from-peft", at("back"), "--out", at("again"))
    run(args.bench, "model", "convert", args.checkpoint, "--out", at("same"))
    again, same = load_file(at("again/e2llm.safetensors")), load_file(at("same/e2llm.safetensors"))
    lost = sorted(n for n in set(again) | set(same) if n not in again or n not in same or not torch.equal(again[n], same[n]))
    ok = decoder <= 1e-4 and encoder <= 1e-4 and not lost and moved > 1e-3
    print(json.dumps(dict(decoder=decoder, encoder=encoder, without_adapter=moved, lost=lost, ok=ok)))
    sys.exit(not ok)


if __name__ == "__main__":
    main()
