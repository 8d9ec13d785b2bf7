"""Trains the same E2LLM from the same start on the same batches here and in the PyTorch reference, and compares losses.

    python3 torch_compare.py --bench target/release/e2llm-bench --reference DIR --data PREPARED --work NEW \
        [--device cuda:0] [--dtype f32|bf16] [--steps 50] [--lr 1e-4] [--encoder NAME] [--decoder NAME]

`--reference` is the folder of e2llm_torch.py, `--data` what `e2llm-bench prepare` wrote. A step takes all of the data, so
that the order of items does not matter: prepare a few short records. Rounding grows from step to step, most where AdamW divides
small gradients by their own size, so in float32 both are also held against the reference in float64, which is next to exact
(on a CPU it is slow: give fewer steps), and the reference against itself with the same items in parts of another size. In bf16
both compute in bf16 with float32 masters of what is trained, and both are compared with the reference in float32. Prints one
JSON line, distances as the greatest relative difference of a step's loss and as those after 1, 2, 5, 10, .. steps, and exits
non-zero where float32 losses are further from the reference than 1e-3 and also further from float64 than 1.5 times what the
reference's own are, or bf16 ones further from float32 than 1.5 times the reference's own.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import torch

MOST_ANSWER = 256  # tokens, as data.max_answer_tokens is by default
CONFIG = """
seed = 7
[model]
encoder = "{encoder}"
decoder = "{decoder}"
{start}
adapter = "mean"
soft_tokens_per_chunk = 8
output_scale = true
[model.encoder_lora]
r = 16
lora_alpha = 32
target_modules = ["query", "key", "value", "dense"]
[model.decoder_lora]
r = 16
lora_alpha = 32
target_modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
[data]
folder = "{data}"
[[phase]]
steps = {steps}
reasoning_batch = 100000
reconstruction_batch = 100000
lambda = 0.5
[optimizer]
lr = {lr}
warmup_steps = 10
[compute]
device = "{device}"
dtype = "{dtype}"
micro_positions = 0
[validation]
every = 0
items = 1
patience = 0
[output]
checkpoint_every = 0
"""


def train(args, name, lr, steps, dtype, start=""):
    """Runs our training and gives its folder."""
    path = os.path.join(args.work, name)
    config = CONFIG.format(encoder=args.encoder, decoder=args.decoder, data=os.path.abspath(args.data), lr=lr,
                           steps=steps, device=args.device, dtype=dtype, start=start)
    with open(path + ".toml", "w") as f:
        f.write(config)
    subprocess.run([args.bench, "train", "--config", path + ".toml", "--out", path, "-q"], check=True)
    return path


def losses(folder):
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        return [line["loss"] for line in map(json.loads, f) if "loss" in line]


def start(args):
    """A start that both read: our start values (a learning rate that moves nothing) on the base models in HF layout."""
    folder = os.path.join(train(args, "start", 1e-30, 1, "f32"), "last")
    merged = os.path.join(args.work, "merged")
    subprocess.run([args.bench, "model", "merge-lora", folder, "--out", merged], check=True)
    for name in ("e2llm_config.json", "e2llm.safetensors"):
        shutil.copy(os.path.join(folder, name), os.path.join(merged, name))
    return folder, merged


def examples(args, reference, config, folder):
    """All questions and all chunks of the prepared training split, as the reference's examples."""
    from transformers import AutoTokenizer

    with open(os.path.join(args.data, "manifest.json")) as f:
        manifest = json.load(f)
    read = lambda name, n: np.fromfile(os.path.join(args.data, "train", name), {2: "<u2", 4: "<u4", 8: "<u8"}[n]).astype(int)
    enc = read("encoder.ids", manifest["encoder_id_bytes"])
    dec = read("decoder.ids", manifest["decoder_id_bytes"])
    answers = read("answers.ids", manifest["decoder_id_bytes"])
    chunks = read("chunks.idx", 8).reshape(-1, 2)
    documents = read("documents.idx", 8)
    questions = read("questions.idx", 8).reshape(-1, 4)
    with open(os.path.join(args.data, "train", "questions.txt"), "rb") as f:
        texts = f.read()
    tokenizer = AutoTokenizer.from_pretrained(os.path.join(folder, "decoder"))
    eos = tokenizer.eos_token_id
    mark = "\u0000CONTEXT\u0000"

    def around(instruction):
        message = config.context_prefix + mark + config.instruction_prefix + instruction
        text = tokenizer.apply_chat_template([{"role": "user", "content": message}], tokenize=False,
                                             add_generation_prompt=True)
        before, after = text.split(mark)
        ids = lambda t: tokenizer(t, add_special_tokens=False)["input_ids"]
        return ids(before), ids(after)

    chunk_ids = lambda c: enc[chunks[c, 0]:chunks[c + 1, 0]].tolist()
    chunk_text = lambda c: dec[chunks[c, 1]:chunks[c + 1, 1]].tolist()
    ends = np.append(questions[1:, 1], len(texts)), np.append(questions[1:, 2], len(answers))
    reasoning, restatements = [], []
    for i, (document, text, answer, _) in enumerate(questions):
        prefix, suffix = around(texts[text:ends[0][i]].decode())
        own = [chunk_ids(c) for c in range(documents[document], documents[document + 1])]
        ids = answers[answer:ends[1][i]].tolist()
        ids = ids[:MOST_ANSWER] if len(ids) > MOST_ANSWER else ids + [eos]
        reasoning.append(reference.Example(own, prefix, suffix, ids))
    prefix, suffix = around(config.reconstruction_instruction)
    for c in range(len(chunks) - 1):
        restatements.append(reference.Example([chunk_ids(c)], prefix, suffix, chunk_text(c) + [eos]))
    return reasoning, restatements


def torch_losses(args, reference, folder, dtype, part=None):
    part = part or args.part
    model = reference.load_checkpoint(folder).to(args.device)
    if dtype == "f64":
        model.double()
    bf16 = dtype == "bf16"
    if bf16:
        for p in model.parameters():
            if not p.requires_grad:
                p.data = p.data.to(torch.bfloat16)
    reasoning, restatements = examples(args, reference, model.cfg, folder)
    trained = reference.trainable(model)
    optimizer = torch.optim.AdamW(trained, lr=args.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)

    def mean_loss(batch):
        # In parts that fit the memory; together they are the mean over all answer tokens.
        total = sum(len(e.answer) for e in batch)
        for i in range(0, len(batch), part):
            some = batch[i:i + part]
            with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=bf16):
                loss = reference.wide(model.loss(some)[0]) * (sum(len(e.answer) for e in some) / total)
            yield loss

    out = []
    for step in range(args.steps):
        lr = learning_rate(step, args.steps, args.lr)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        value = 0.0
        for weight, batch in ((1.0, reasoning), (0.5, restatements)):
            for loss in mean_loss(batch):
                (weight * loss).backward()
                value += weight * loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        out.append(value)
    return out


def learning_rate(step, steps, peak, warmup=10, least=0.1):
    warmup = min(warmup, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (least + (1 - least) * 0.5 * (1 + np.cos(np.pi * done)))


def distances(a, b):
    """The greatest relative difference, and those after some steps."""
    each = [abs(x - y) / abs(y) for x, y in zip(a, b)]
    marks = [n for n in (1, 2, 3, 5, 10, 20, 30, 40, 50) if n <= len(each)]
    return max(each), {n: float(f"{each[n - 1]:.2e}") for n in marks}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--bench", required=True)
    a.add_argument("--reference", required=True)
    a.add_argument("--data", required=True)
    a.add_argument("--work", required=True)
    a.add_argument("--device", default="cpu")
    a.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    a.add_argument("--steps", type=int, default=50)
    a.add_argument("--lr", type=float, default=1e-4)
    a.add_argument("--part", type=int, default=32)
    a.add_argument("--encoder", default="all-minilm-l6-v2")
    a.add_argument("--decoder", default="smollm2-135m-instruct")
    args = a.parse_args()
    sys.path.insert(0, args.reference)
    import e2llm_torch as reference

    os.makedirs(args.work)
    first, merged = start(args)
    ours = losses(train(args, "ours", args.lr, args.steps, args.dtype, f'start = "{os.path.abspath(first)}"'))
    theirs = torch_losses(args, reference, merged, "f32")
    row = dict(dtype=args.dtype, lr=args.lr, steps=args.steps, first=[ours[0], theirs[0]], last=[ours[-1], theirs[-1]])

    def compare(name, a, b):
        row[name], row[name + "_after"] = distances(a, b)
        return row[name]

    if args.dtype == "f32":
        exact = torch_losses(args, reference, merged, "f64")
        close = compare("ours_from_torch", ours, theirs) <= 1e-3
        compare("torch_from_itself", torch_losses(args, reference, merged, "f32", max(1, args.part // 8)), theirs)
        ok = compare("ours_from_f64", ours, exact) <= 1.5 * compare("torch_from_f64", theirs, exact) or close
    else:
        own = compare("torch_from_f32", torch_losses(args, reference, merged, "bf16"), theirs)
        ok = compare("ours_from_f32", ours, theirs) <= 1.5 * own
    print(json.dumps(dict(row, ok=ok)))
    sys.exit(not ok)


if __name__ == "__main__":
    main()
