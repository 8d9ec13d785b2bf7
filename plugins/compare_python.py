#!/usr/bin/env python3
"""Compares the metric plugins with the Python packages whose numbers are published.

    pip install rouge-score==0.1.2 rouge==1.0.1 rapidfuzz==3.14.6 fuzzywuzzy==0.18.0 zstandard
    python3 plugins/compare_python.py DATA --bench target/release/e2llm-bench

Pairs are made from the answers of all records under DATA (`*.jsonl`, `*.jsonl.zst`), used as predictions of each
other, and from Unicode and empty cases. Each pair is scored by `e2llm-bench metric NAME --input FILE` and by
rouge-score, rouge, rapidfuzz, fuzzywuzzy (without python-Levenshtein), and the definitions of SQuAD, TriviaQA, RULER and
LongBench written out below. Prints the greatest difference of every metric; exits with 1 if one is above 1e-9. Not among them: `rougeLsum@sentences` (sentences by UAX 29)
and `accuracy@lenient` (this project's own reading), which have no Python counterpart.
"""

import argparse
import collections
import itertools
import json
import math
import multiprocessing
import pathlib
import random
import re
import string
import subprocess
import sys
import tempfile
import threading

TOLERANCE = 1e-9
ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
# `room()` where LongBench's eval.py calls `Rouge.get_scores`, with Python 3.11's default limit: three calls deep.
LONGBENCH_ROOM = 996

ODD_TEXTS = [
    "", " ", "\n", "...", ". .", "a", "the", "A.", "!!! ???", "x" * 40, "Café naïve résumé über Straße",
    "ΣΊΣΥΦΟΣ İstanbul", "\u212aelvin 300\u212a", "don't DON’T “quoted” ‘single’ ´acute` snake_case", "中文 没有 空格 的 句子。",
    "tab\tnbsp\xa0em\u2003fs\x1cgs\x1dus\x1fnel\x85ls\u2028ps\u2029end", "a\u0301 cafe\u0301 the\u0301 an\u200dd the", "हिन्दी की किताब a",
    "Ⓐ Ⅻ ½ ² ٣ the٣ a²", "one two one two one. two one. one", "Line one\nLine two\n\nLine three", "Line two\r\nLine one\r\n",
    "dying lying skies news innings proceed generalizations oscillators happily", "rock-n-roll U.S. 3.5% 2019-2020",
    "🙂 the 🙂 a", "\ufeffThe answer", "The correct answer is (B)", "running. ran. runs. runner", "ﬁne ſtrange ß ẞ", "a" * 16 + " " + "b" * 17,
]


def texts(path):
    raw = path.read_bytes()
    if path.suffix == ".zst":
        import io

        import zstandard

        raw = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(io.BytesIO(raw)).read()
    for line in raw.decode("utf-8").split("\n"):
        if line.strip():
            record = json.loads(line)
            answers = [a for a in record.get("answers", []) if isinstance(a, str)]
            if answers:
                yield answers


def build_pairs(data, per_file, max_words, seed):
    rng = random.Random(seed)
    pairs = [(p, [r]) for p, r in itertools.product(ODD_TEXTS, repeat=2)]
    files = sorted(p for p in data.rglob("*") if p.name.endswith((".jsonl", ".jsonl.zst")) and "raw" not in p.parts)
    if not files:
        sys.exit(f"no .jsonl or .jsonl.zst under {data}")
    for path in files:
        records = list(texts(path))
        rng.shuffle(records)
        for n, (one, other) in enumerate(zip(records, records[1:] + records[:1])):
            if n >= per_file:
                break
            prediction, references = rng.choice(one), list(other)
            if rng.random() < 0.2:
                references = list(one)
            if n >= 12:  # a few long ones in full
                cut = lambda text: " ".join(text.split(" ")[:max_words])
                prediction, references = cut(prediction), [cut(r) for r in references]
            if n % 3 == 0:  # one sentence a line, as SCROLLS does for rougeLsum
                lines = lambda text: re.sub(r"(?<=[.?!]) ", "\n", text)
                prediction, references = lines(prediction), [lines(r) for r in references]
            pairs.append((prediction, references))
    long = [" ".join(rng.choice("abcdefgh") + str(rng.randrange(9)) for _ in range(n)) for n in (450, 500, 560, 990, 991)]
    pairs += [(p, [r]) for p, r in itertools.product(long[:3], repeat=2)] + [(t, [t]) for t in long]
    return pairs


# --- definitions -----------------------------------------------------------------------------------------------------


def squad(text):
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def trivia(text):
    drop = set(string.punctuation) | set("‘’´`")
    text = "".join(" " if c in drop else c for c in text.replace("_", " ").lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(prediction, gold):
    p, g = prediction.split(), gold.split()
    same = sum((collections.Counter(p) & collections.Counter(g)).values())
    if not same:
        return 0.0
    precision, recall = same / len(p), same / len(g)
    return 2 * precision * recall / (precision + recall)


def qa_scores(prediction, references):
    out = {}
    for name, norm in (("squad", squad), ("triviaqa", trivia)):
        out[f"f1_{name}"] = max(f1(norm(prediction), norm(r)) for r in references)
        out[f"em_{name}"] = max(float(norm(prediction) == norm(r)) for r in references)
    return out


def needle_scores(prediction, references):
    found = [float(r.lower() in prediction.lower()) for r in references]
    clean = re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip()
    ruler = [float(r.lower() in clean.lower()) for r in references]
    return {"needle_recall": sum(found) / len(found), "ruler_all": sum(ruler) / len(ruler), "ruler_part": max(ruler)}


def choice_scores(response, gold):
    response = response.replace("*", "")
    match = re.search(r"The correct answer is \(([A-D])\)", response) or re.search(r"The correct answer is ([A-D])", response)
    letter = match.group(1) if match else None
    right = float(letter == gold)
    return {"accuracy@official": right, "accuracy@compensated": 0.25 if letter is None else right, "n_null": float(letter is None)}


def code_scores(prediction, references):
    from fuzzywuzzy import fuzz as fuzzywuzzy
    from rapidfuzz import fuzz as rapidfuzz

    lines = prediction.lstrip("\n").split("\n")
    line = next((l for l in lines if not any(mark in l for mark in ("`", "#", "//"))), "")
    ratio = lambda fuzz: max(fuzz.ratio(line, r) / 100 for r in references)
    compat = ratio(fuzzywuzzy)
    return {"code_sim_score": ratio(rapidfuzz), "code_sim_score@compat": compat, "longbench_score": compat}


def label_scores(prediction, gold, classes):
    named = [c for c in classes if c in prediction]
    share = lambda left: 1 / len(left) if gold in left else 0.0
    clean = share([c for c in named if c == gold or c not in gold])
    for c in named:  # the list loses members while it is walked over, as in the script
        if c in gold and c != gold:
            named.remove(c)
    return {"classification_score": clean, "classification_score@compat": share(named), "longbench_score": share(named)}


def number_scores(name, prediction, gold):
    numbers = re.findall(r"\d+", prediction)
    value = sum(n == gold for n in numbers) / len(numbers) if numbers else 0.0
    return {name: value, "longbench_score": value}


def longbench_samples(pairs, code, rng):
    """Samples of the data sets whose scores are no others' too, with their values: `code` is that of the pairs as code."""
    for (prediction, references), scores in zip(pairs, code):
        meta = {"dataset": rng.choice(["lcc", "repobench-p"])}
        yield {"prediction": prediction, "references": references, "meta": meta}, scores
    words = [w for _, references in pairs for w in references[0].split()[:3]]
    for _ in range(2000):
        classes = [" ".join(rng.choices(words, k=rng.choice([1, 1, 2]))) for _ in range(4)]
        classes = list(dict.fromkeys(classes + [c.split(" ")[0] for c in classes[:2]]))
        gold, prediction = rng.choice(classes), rng.choice([" or ", "\n", ""]).join(rng.choices(classes, k=rng.randrange(4)))
        sample = {"prediction": prediction, "references": [gold], "meta": {"dataset": "trec", "all_classes": classes}}
        yield sample, label_scores(prediction, gold, classes)
        gold = str(rng.randrange(30))
        prediction = " ".join(rng.choice(["Paragraph", "", "no.", "٣", "x"]) + str(rng.randrange(30)) for _ in range(rng.randrange(4)))
        sample = {"prediction": prediction, "references": [f"Paragraph {gold}"], "meta": {"dataset": "passage_retrieval_en"}}
        yield sample, number_scores("retrieval_score", prediction, gold)
        yield {**sample, "references": [gold], "meta": {"dataset": "passage_count"}}, number_scores("count_score", prediction, gold)


def scorers():
    from rouge_score.rouge_scorer import RougeScorer

    return {"": RougeScorer(ROUGE, use_stemmer=False), "+stem": RougeScorer(ROUGE, use_stemmer=True)}


def room(calls=0):
    """How many calls deeper Python lets a function go."""
    try:
        return room(calls + 1)
    except RecursionError:
        return calls


def pltrdy(prediction, reference, as_longbench):
    from rouge import Rouge

    before = sys.getrecursionlimit()
    try:
        if as_longbench:
            sys.setrecursionlimit(2000)
            sys.setrecursionlimit(2000 + LONGBENCH_ROOM - room())
        else:
            sys.setrecursionlimit(10**6)
        return Rouge(metrics=["rouge-l"]).get_scores([prediction], [reference], avg=True)["rouge-l"]["f"]
    except (ValueError, RecursionError):
        return 0.0
    finally:
        sys.setrecursionlimit(before)


def rouge_scores(pair):
    prediction, references = pair
    out = {}
    for suffix, scorer in scorers().items():
        best = scorer.score_multi(references, prediction)
        out.update({name + suffix: best[name].fmeasure for name in ROUGE})
    out["rouge_l_pltrdy"] = max(pltrdy(prediction, r, False) for r in references)
    out["rouge_l_pltrdy@compat"] = max(pltrdy(prediction, r, True) for r in references)
    return out


# --- comparison ------------------------------------------------------------------------------------------------------


def ours(bench, metric, samples, *more):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")
        file.flush()
        out = subprocess.run([*bench, "metric", metric, "--input", file.name, *more], check=True, stdout=subprocess.PIPE)
    rows = [json.loads(line) for line in out.stdout.decode("utf-8").split("\n") if line]
    if not more and len(rows) != len(samples):
        sys.exit(f"`metric {metric}` printed {len(rows)} lines for {len(samples)} pairs")
    return [row.get("scores", row) for row in rows]


def compare(metric, samples, expected, got, worst):
    for sample, want, have in zip(samples, expected, got):
        for name, value in want.items():
            difference = abs(have[name] - value) if name in have else math.inf
            if name not in worst or not difference <= worst[name][0]:
                worst[name] = (difference, sample)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=pathlib.Path, help="folder with records")
    parser.add_argument("--bench", default="target/release/e2llm-bench", help="the binary, with arguments if need be")
    parser.add_argument("--per-file", type=int, default=300, help="pairs of each data file")
    parser.add_argument("--max-words", type=int, default=250, help="longer texts are cut, but for a few")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    bench = args.bench.split()

    import difflib
    import warnings

    warnings.simplefilter("ignore")  # fuzzywuzzy tells that it does without python-Levenshtein
    import fuzzywuzzy.fuzz

    if fuzzywuzzy.fuzz.SequenceMatcher is not difflib.SequenceMatcher:
        sys.exit("python-Levenshtein is installed: fuzzywuzzy then computes another ratio")

    pairs = build_pairs(args.data, args.per_file, args.max_words, args.seed)
    plain = [{"prediction": p, "references": r} for p, r in pairs]
    worst = {}
    with multiprocessing.Pool() as pool:
        reference = pool.map(rouge_scores, pairs, chunksize=8)
        code = pool.starmap(code_scores, pairs, chunksize=8)
    compare("rouge", plain, reference, ours(bench, "rouge", plain), worst)
    compare("qa", plain, [qa_scores(p, r) for p, r in pairs], ours(bench, "qa", plain), worst)
    needle = [{**needle_scores(p, r), "needle_rouge": best["rouge1+stem"]} for (p, r), best in zip(pairs, reference)]
    compare("needle", plain, needle, ours(bench, "needle", plain), worst)
    mean = lambda name: sum(row[name] for row in reference) / len(reference)
    gmean = (mean("rouge1") * mean("rouge2") * mean("rougeL")) ** (1 / 3)
    compare("rouge_gmean", [None], [{"rouge_gmean": gmean}], ours(bench, "rouge_gmean", plain, "--aggregate"), worst)

    rng = random.Random(args.seed)
    forms = ["The correct answer is ({})", "**The correct answer is {}**", "the correct answer is ({})", "({})", "{}", "Answer: {}", "The correct answer is\n({})"]
    letters = "ABCDEa"
    choices = [(rng.choice(forms).format(rng.choice(letters)) + rng.choice(["", ".", "pple"]), rng.choice("ABCD")) for _ in range(2000)]
    options = [r[:1] for _, r in pairs if squad(r[0])][:4000]
    options = [sum(options[i : i + 4], []) for i in range(0, len(options) - 3, 4)]
    samples, expected = [], []
    for n, (response, gold) in enumerate(choices):
        four = options[n % len(options)]
        if n % 4 == 0:  # an option's text, or nearly
            response = rng.choice(four).upper() + rng.choice(["", ".", " the", " x"])
        meta = {"choice_protocol": "longbench-v2", "options": four}
        samples.append({"prediction": response, "references": [gold], "meta": meta})
        right = squad(response) == squad(four["ABCD".index(gold)])
        expected.append({**choice_scores(response, gold), "em@scrolls": float(right)})
    compare("choice", samples, expected, ours(bench, "choice", samples), worst)

    labelled, expected = zip(*longbench_samples(pairs, code, rng))
    compare("longbench", labelled, expected, ours(bench, "longbench", labelled), worst)

    print(f"{len(pairs)} pairs, {len(samples)} choices, {len(labelled)} of LongBench")
    for name, (difference, sample) in worst.items():
        print(f"{name:24} {difference:.3e}")
        if not difference <= TOLERANCE:
            print(f"  at {json.dumps(sample, ensure_ascii=False)[:600]}", file=sys.stderr)
    greatest = max(difference for difference, _ in worst.values())
    print(f"greatest difference      {greatest:.3e}")
    return 0 if greatest <= TOLERANCE else 1


if __name__ == "__main__":
    # pltrdy's package recurses once a word pair; a thread can have the stack for that.
    threading.stack_size(512 * 1024 * 1024)
    status = []
    thread = threading.Thread(target=lambda: status.append(main()))
    thread.start()
    thread.join()
    sys.exit(status[0] if status else 2)
