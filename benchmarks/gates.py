"""How often do the two conflict tests agree?  One training run with the exact test, the other one asked at every step.

    python benchmarks/gates.py --task rte --method acl-cl --data data --model minilm --pooling mean --lr 1e-4 --epochs 1

All options are train.py's.  The run follows the test at the parameters (--conflict discard); at the same step, on the same
graph, the test at the representations says for each exit whether it would keep its term.
"""

import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import exits
import glue
import train


def feature_decisions(ce, cl, h):
    """[keep?] of each exit: < d L_CE / d h^m, d L_CL^m / d h^m > >= 0, as `acl_grad_features` decides."""
    g_ce, = torch.autograd.grad(sum(ce), h, retain_graph=True)                 # (M, N, d)
    g_cl, = torch.autograd.grad(sum(cl), h, retain_graph=True)                 # (M, N, d)
    return ((g_ce * g_cl).sum((1, 2)) >= 0).tolist()


def main():
    args = train.parse_args([*sys.argv[1:], "--conflict", "discard"])
    device = torch.device("cpu")
    torch.manual_seed(args.seeds[0])
    split = glue.load_task(args.task, args.data, args.limit_train)["train"]
    encoder, tokenizer = exits.load_encoder(args.model)
    model = exits.MultiExitBert(encoder, len(glue.TASKS[args.task].labels), args.exits, args.pooling).train()
    split = glue.tokenize(split, tokenizer, args.max_length)
    total = args.epochs * math.ceil(len(split) / args.batch_size)
    optimizer, schedule = train.make_optimizer(args, model, total)
    bf16 = train.use_bf16(args.precision, device)
    steps = []                                                                 # (kept at the parameters, [kept at exit m])
    for epoch in range(1, args.epochs + 1):
        order = torch.Generator().manual_seed(1000 * args.seeds[0] + epoch)
        for batch in glue.loader(split, glue.bucketed_batches(glue.row_lengths(split), args.batch_size, order), tokenizer):
            labels = batch.pop("label")
            h, logits = train.forward_shared(model, batch, bf16, len(steps))
            ce, cl = train.compute_losses(args, model, h, logits, labels)
            at_features = feature_decisions(ce, cl, h)
            seen = train.fill_gradients(args, model, h, ce, cl)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            steps.append((seen.kept == 1, at_features))
    first = max(1, len(steps) // 10)
    print(f"{args.task} {args.method}, seed {args.seeds[0]}, {len(steps)} steps of {args.batch_size} samples, exits {model.exits}")
    for name, part in (("all steps", steps), (f"first {first} steps", steps[:first])):
        dropped = sum(not kept for kept, _ in part) / len(part)
        dropped_at = [sum(not at[m] for _, at in part) / len(part) for m in range(len(model.exits))]
        agree = sum(kept == k for kept, at in part for k in at) / sum(len(at) for _, at in part)
        deepest = sum(kept == at[-1] for kept, at in part) / len(part)
        print(f"{name}: dropped at the parameters {100 * dropped:.1f} %, at the features of each exit "
              + " ".join(f"{100 * d:.1f}" for d in dropped_at)
              + f" %; same decision {100 * agree:.1f} % (deepest exit {100 * deepest:.1f} %)")


if __name__ == "__main__":
    main()
