"""Memory of a task of MNLI's size: 392,702 made-up rows as text, then as tokens.

    python benchmarks/memory.py --model minilm
"""

import argparse
import random
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import torch
from transformers import AutoTokenizer

import glue


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, help="folder or hub id of the tokenizer")
    p.add_argument("--rows", type=int, default=392_702)
    args = p.parse_args()
    draw = random.Random(0)
    words = "the a man woman is was not riding reading sitting near of on in two people house city because never".split()
    texts = [[" ".join(draw.choices(words, k=draw.randint(5, 2 * mean))) for _ in range(args.rows)] for mean in (20, 11)]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    split = datasets.Dataset.from_dict({"sentence1": texts[0], "sentence2": texts[1], "label": [i % 3 for i in range(args.rows)]})
    del texts
    before = resident_mb()
    split = glue.tokenize(split, tokenizer, max_length=128)
    lengths = glue.row_lengths(split)
    print(f"{args.rows} rows, {lengths.sum()} tokens: {before:.0f} MB resident as text, {resident_mb():.0f} MB after tokenising, "
          f"of them {split.data.nbytes / 1e6:.0f} MB in the table; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")
    start = resident_mb()
    for _ in glue.loader(split, glue.bucketed_batches(lengths, 32, torch.Generator().manual_seed(0)), tokenizer):
        pass
    print(f"after cutting one epoch's {-(-args.rows // 32)} batches: {resident_mb():.0f} MB ({resident_mb() - start:+.0f})")


if __name__ == "__main__":
    main()
