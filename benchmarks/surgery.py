"""What a step with gradient surgery costs: acl_grad and its peers on one model and one batch, taking turns in one run.

    python benchmarks/surgery.py                                         # MiniLM's shape, batch 8, 32, 128, on the CPU
    python benchmarks/surgery.py --device cuda --shape bert-base --csv surgery.csv
    python benchmarks/surgery.py --shape tiny --rounds 2                 # does everything still run?

Timed: forward with dropout, losses, gradient in `.grad`, graph freed.  Not timed: optimizer step, data.  fp32, random
weights, random tokens, no padding, nothing is downloaded.  First it is checked that contestants that should leave the
same gradient do.  TorchJD takes part if it is installed (benchmarks/requirements.txt).  README.md says what to expect.
"""

import argparse
import csv
import ctypes
import random
import re
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel

import acl
from exits import MultiExitBert
from grad_surgery import acl_grad, acl_grad_features

try:
    import torchjd
    import torchjd.aggregation
    import torchjd.autojac
except ImportError:
    torchjd = None

WEIGHT, TEMPERATURE, NUM_LABELS = 0.1, 0.5, 2                   # lambda and tau as in train.py
SHAPES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256,
             "vocab_size": 1000},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {},                                            # BertConfig's defaults
}


class Losses(NamedTuple):
    """One forward: scalar CE, the exits' contrastive terms (M,), representations (M, N, d), trained parameters."""
    ce: torch.Tensor
    cl: list        # of M scalars
    h: torch.Tensor
    parameters: list


def forward(model, tokens, labels, sign=1):
    """Tokens (N, L), labels (N,) -> Losses.  One exit: CE and ACL-Embed.  Several: an exit weighs its number, and the deepest
    guides the others as well (ACL-CL).  sign -1 negates the contrastive gradient: a conflict where there was none."""
    h, logits = model(input_ids=tokens)                                                               # (M, N, d), (M, N, K)
    rows = [classifier.weight for classifier in model.classifiers]                          # label embeddings (K, d)
    share = [m / sum(model.exits) for m in model.exits]
    ce = [F.cross_entropy(z, labels) for z in logits]
    cl = [acl.acl_embed_loss(x, labels, l, TEMPERATURE) for x, l in zip(h, rows)]
    for m in range(len(cl) - 1):
        cl[m] = cl[m] + acl.acl_cl_loss(h[m], h[-1], labels, rows[-1], TEMPERATURE)
    return Losses(sum(w * loss for w, loss in zip(share, ce)), [sign * w * loss for w, loss in zip(share, cl)], h,
                  [p for p in model.parameters() if p.requires_grad])


# ---------------------------------------------------------------------------------------------------------- contestants
# Each takes Losses, leaves a gradient in `.grad`, and returns whether it saw a conflict (features: the share of exits
# that did), or None if it did not look.

def forward_only(losses):
    return None


def plain_ce(losses):
    losses.ce.backward()


def plain_sum(losses):
    (losses.ce + WEIGHT * sum(losses.cl)).backward()


def ours(rule):
    return lambda losses: not acl_grad(losses.ce, sum(losses.cl), losses.parameters, WEIGHT, rule).cosine >= 0


def ours_at_features(rule):
    def gradient(losses):
        seen = acl_grad_features(losses.ce, losses.cl, losses.h, WEIGHT, rule)
        return statistics.mean(not dot >= 0 for dot, _, _ in seen.products)
    return gradient


def batched_discard(losses):
    """`discard` with both gradients from one backward under vmap: the work of two, but half the launches on a GPU."""
    both = torch.stack([losses.ce, sum(losses.cl)])
    rows = torch.eye(2, dtype=both.dtype, device=both.device)   # row 0 asks for CE's gradient, row 1 for the other's
    gradients = torch.autograd.grad(both, losses.parameters, rows, is_grads_batched=True, allow_unused=True)  # (2, ..)
    gradients = [(p, g) for p, g in zip(losses.parameters, gradients) if g is not None]
    # Unreached parameters are zeros here: right for the sign of the inner product, though not for an angle.
    agree = torch.stack([g[0].flatten().dot(g[1].flatten()) for _, g in gradients]).sum().item() >= 0
    for p, g in gradients:
        p.grad = g[0].add_(g[1], alpha=WEIGHT) if agree else g[0]
    return not agree


def flat_pcgrad(one_sided=False, masks=False):
    """PCGrad (arXiv 2001.06782) the way of github.com/WeiChengTseng/Pytorch-PCGrad, written anew from its description.

    One backward for each loss, its gradient joined into one long vector, zeros where the loss does not reach; each
    vector loses its component along any other it conflicts with; the sum is cut into parameters again.  Our weight goes
    into the second loss.  one_sided: only the contrastive vector is projected, which is our `project`.  masks: with
    that repository's element-wise masks of what a loss reaches, by which it merges shared and other elements apart.
    """
    def gradient(losses):
        flat, reached = [], []                                                              # (P,) for each loss
        for loss in (losses.ce, WEIGHT * sum(losses.cl)):
            for p in losses.parameters:
                p.grad = None
            loss.backward(retain_graph=True)
            found = [p.grad for p in losses.parameters]
            flat.append(torch.cat([(torch.zeros_like(p) if g is None else g.clone()).flatten()
                                   for p, g in zip(losses.parameters, found)]))
            if masks:
                reached.append(torch.cat([torch.full_like(p, g is not None).flatten()
                                          for p, g in zip(losses.parameters, found)]))
        projected, conflict = [g.clone() for g in flat], False
        # Others are taken in random order there; two losses have but one other each.
        for mine, other in [(1, 0)] if one_sided else [(0, 1), (1, 0)]:
            dot = torch.dot(projected[mine], flat[other])
            if dot < 0:
                projected[mine] -= dot / flat[other].norm()**2 * flat[other]
                conflict = True
        if masks:
            shared = reached[0] * reached[1] > 0
            merged = torch.empty_like(flat[0])
            for part in (shared, ~shared):
                merged[part] = torch.stack([g[part] for g in projected]).sum(dim=0)
        else:
            merged = torch.stack(projected).sum(dim=0)
        for p, piece in zip(losses.parameters, merged.split([p.numel() for p in losses.parameters])):
            p.grad = piece.view(p.shape).clone()
        return conflict
    return gradient


def torchjd_pcgrad(lean=False):
    """TorchJD's PCGrad as its documentation has it: fill `.jac` of all parameters, then aggregate it into `.grad`.
    lean: with what it offers against vmap's cost and memory: one row of the Jacobian at a time, no joined copy."""
    def gradient(losses):
        torchjd.autojac.backward([losses.ce, WEIGHT * sum(losses.cl)], inputs=losses.parameters,
                                 parallel_chunk_size=1 if lean else None)
        weights = torchjd.autojac.jac_to_grad(losses.parameters, torchjd.aggregation.PCGrad(),
                                              optimize_gramian_computation=lean)
        return bool((weights != 1).any())                       # without a conflict each row of the Jacobian weighs 1
    return gradient


CONTESTANTS = {
    "forward and losses only": forward_only,
    "plain CE": plain_ce,
    "plain sum": plain_sum,
    "acl_grad observe": ours("observe"),
    "acl_grad discard": ours("discard"),
    "acl_grad project": ours("project"),
    "acl_grad weigh": ours("weigh"),
    "acl_grad_features observe": ours_at_features("observe"),
    "acl_grad_features discard": ours_at_features("discard"),
    "batched discard": batched_discard,
    "flat PCGrad one-sided": flat_pcgrad(one_sided=True),
    "flat PCGrad": flat_pcgrad(),
    "flat PCGrad with masks": flat_pcgrad(masks=True),
}
if torchjd is not None:
    CONTESTANTS |= {"TorchJD PCGrad": torchjd_pcgrad(), "TorchJD PCGrad lean": torchjd_pcgrad(lean=True)}

# (B, biases, As): each A must leave the gradient of B.  The classifiers' biases are what CE alone reaches.  PCGrad
# counts them in |g_CE|^2 and projects along them, acl_grad looks at what both losses reach: equal if they are frozen.
SAME = [("plain sum", "trained", ["acl_grad observe", "acl_grad_features observe"]),
        ("acl_grad discard", "trained", ["batched discard"]),
        ("acl_grad project", "frozen", ["flat PCGrad one-sided"]),
        ("acl_grad project", "trained", ["flat PCGrad one-sided"]),
        ("flat PCGrad", "trained", ["flat PCGrad with masks", "TorchJD PCGrad", "TorchJD PCGrad lean"])]
DIFFERS_BY_DESIGN = SAME[3]


# --------------------------------------------------------------------------------------------------------- measurements

def step(model, batch, gradient, seed, sign=1):
    """One step up to the gradient.  The same seed gives every contestant the same dropout masks."""
    torch.manual_seed(seed)
    return gradient(forward(model, *batch, sign))


def check(model, batch, contestants):
    """Print how far gradients that should be equal differ; returns whether all agree in float64.

    Once with the contrastive loss and once with its negative, so that one of the two is a conflict.  Difference: the
    largest of any element over B's largest element.  (Not parameter by parameter: the gradient of a key's bias in
    attention is 0 by construction, nothing but rounding to compare.)  float64 decides.  float32, the one that is timed,
    shows what an inner product of 10^7 elements in one sum loses; acl_grad sums tensor by tensor, then in float64.
    """
    def gradient(name, sign):
        model.zero_grad(set_to_none=True)
        conflict = step(model, batch, contestants[name], 1, sign)
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()], conflict

    def compare(dtype, b, names):
        """{A: (largest difference, whether A and B decided the same)}"""
        model.to(dtype)
        found = {a: (0.0, True) for a in names}
        for sign in (1, -1):
            theirs, expected = gradient(b, sign)
            largest = max(y.abs().max().item() for y in theirs)
            for a in names:
                mine, saw = gradient(a, sign)
                apart = max((x - y).abs().max().item() for x, y in zip(mine, theirs)) / largest
                found[a] = max(found[a][0], apart), found[a][1] and (saw == expected or expected is None)
        model.to(torch.float32)                                 # the same weights again: float64 holds them exactly
        return found

    all_equal = True
    print(f"\n{'this gradient':27}{'should be that of':18}{'biases':8}{'float64':>9}{'float32':>9}"
          "  (relative difference)")
    for same in SAME:
        b, biases, names = same
        names = [a for a in names if a in contestants] if b in contestants else []
        for classifier in model.classifiers:
            classifier.bias.requires_grad_(biases == "trained")
        wide, narrow = compare(torch.float64, b, names), compare(torch.float32, b, names)
        for a in names:
            equal = wide[a][0] < 1e-5 and wide[a][1]
            all_equal = all_equal and (equal or same == DIFFERS_BY_DESIGN)
            verdict = "equal" if equal else "differs by design" if same == DIFFERS_BY_DESIGN else "NOT EQUAL"
            print(f"{a:27}{b:18}{biases:8}{wide[a][0]:9.0e}{narrow[a][0]:9.0e}  {verdict}", flush=True)
    model.requires_grad_(True)
    return all_equal


def clock(model, batch, contestants, rounds, device):
    """({name: [seconds of each round]}, {name: [what it saw in each round]}).

    Round 0 warms up and is dropped.  In a round everyone runs once, in an order drawn anew: a slow moment of the
    machine hits all, and nobody always follows the same neighbour.  A round has one dropout seed, so decisions compare.
    Every second round negates the contrastive gradient, so that both branches of a rule are timed.
    """
    seconds, seen = ({name: [] for name in contestants} for _ in range(2))
    draw = random.Random(0)
    for r in range(rounds + 1):
        for name in draw.sample(list(contestants), len(contestants)):
            model.zero_grad(set_to_none=True)
            wait(device)
            start = time.perf_counter()
            conflict = step(model, batch, contestants[name], r, (-1)**r)     # its graph is gone when it returns
            wait(device)
            if r:
                seconds[name].append(time.perf_counter() - start)
                seen[name].append(conflict)
    return seconds, seen


def peak_memory(model, batch, gradient, device):
    """The most that a step holds above the model at rest, in MB: activations, gradients, copies.  None if unknown.

    CUDA: what PyTorch's allocator handed out.  CPU: growth of this process's resident memory, from the kernel's
    high-water mark (Linux), after freed memory was given back; so what allocator and libraries round up is in it.
    """
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        at_rest = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(model, batch, gradient, 1)
        return (torch.cuda.max_memory_allocated() - at_rest) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)                        # glibc: what earlier contestants freed goes back
        Path("/proc/self/clear_refs").write_text("5")           # 5: high-water mark = what is resident now
        at_rest = resident("VmRSS")
        step(model, batch, gradient, 1)
        return (resident("VmHWM") - at_rest) / 1e6
    except (AttributeError, OSError):                           # not glibc, not Linux
        return None


def resident(field):
    """VmRSS (now) or VmHWM (high-water mark) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def peaks(model, batch, contestants, device):
    """{name: peak_memory} of the contestants that get through a step here; the others are named.  (vmap does not know every
    kernel.)"""
    able = {}
    for name, gradient in contestants.items():
        try:
            model.zero_grad(set_to_none=True)
            step(model, batch, gradient, 0)                     # what is set up once shall not count
            able[name] = peak_memory(model, batch, gradient, device)
        except (RuntimeError, NotImplementedError) as error:
            print(f"{name}: left out, {type(error).__name__}: {str(error).strip().splitlines()[0][:80]}")
    return able


# ----------------------------------------------------------------------------------------------------------------- main

YARDSTICKS = ("forward and losses only", "plain CE", "plain sum")


def main(argv=None):
    p = argparse.ArgumentParser(description="Time and memory of a step with gradient surgery, ours and its peers.")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--shape", default="minilm", choices=SHAPES)
    p.add_argument("--batch-size", type=int, nargs="+", default=[8, 32, 128])
    p.add_argument("--length", type=int, default=64, help="tokens of each row (%(default)s)")
    p.add_argument("--exits", default="last", choices=("all", "last"))
    p.add_argument("--rounds", type=int, default=10, help="timed steps of each contestant (%(default)s)")
    p.add_argument("--threads", type=int, help="CPU threads (PyTorch's choice)")
    p.add_argument("--only", metavar="PATTERN", help="beside the yardsticks those whose name matches, a regular expression; without "
                   "the check of equal gradients")
    p.add_argument("--csv", help="also write the table to this file")
    args = p.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        p.error("--device cuda: no GPU to be seen")
    if min(args.rounds, args.length, *args.batch_size) < 1:
        p.error("--rounds, --length and --batch-size must be 1 or more")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, "
          f"{'TorchJD is not installed: left out' if torchjd is None else 'TorchJD takes part'}")

    torch.manual_seed(0)
    config = BertConfig(**SHAPES[args.shape])
    model = MultiExitBert(BertModel(config), NUM_LABELS, args.exits).to(device).train()
    parameter_mb = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    table, all_equal, checked = [], True, False
    for batch_size in args.batch_size:
        tokens = torch.randint(config.vocab_size, (batch_size, args.length)).to(device)
        batch = tokens, (torch.arange(batch_size) % NUM_LABELS).to(device)
        chosen = {name: gradient for name, gradient in CONTESTANTS.items()
                  if name in YARDSTICKS or re.search(args.only or "", name)}
        peak_mb = peaks(model, batch, chosen, device)
        contestants = {name: chosen[name] for name in peak_mb}
        if not checked and not args.only:             # equal at one batch size is equal at all
            all_equal, checked = check(model, [x[:8] for x in batch], contestants), True
        seconds, seen = clock(model, batch, contestants, args.rounds, device)
        plain = statistics.median(seconds["plain sum"])
        print(f"\n{args.shape}, batch {batch_size} x {args.length} tokens, exits {args.exits}, fp32, parameters "
              f"{parameter_mb:.0f} MB, {args.rounds} rounds\n"
              f"{'contestant':28}{'median ms':>10}{'min ms':>10}{'ratio':>8}{'peak MB':>10}"
              f"{'conflicts':>11}{'agree':>8}")
        for name in contestants:
            median, peak = statistics.median(seconds[name]), peak_mb[name]
            # agree: rounds in which it decided as acl_grad discard did (features: with the share of the exits).
            conflicts = agree = None
            if None not in seen[name] and "acl_grad discard" in seen:
                conflicts = round(sum(seen[name]), 2)
                agree = round(sum(1 - abs(x - y) for x, y in zip(seen[name], seen["acl_grad discard"])), 2)
            print(f"{name:28}{1000 * median:10.1f}{1000 * min(seconds[name]):10.1f}{median / plain:8.2f}"
                  f"{'-' if peak is None else f'{peak:.0f}':>10}{'-' if conflicts is None else conflicts:>11}"
                  f"{'-' if agree is None else agree:>8}")
            table.append({"device": where, "torch": torch.__version__, "shape": args.shape, "batch_size": batch_size,
                          "length": args.length, "exits": args.exits, "rounds": args.rounds, "contestant": name,
                          "median_ms": 1000 * median, "min_ms": 1000 * min(seconds[name]), "ratio": median / plain,
                          "peak_mb": peak, "parameter_mb": parameter_mb, "conflicts": conflicts,
                          "agree": agree})
        floor = 2 - statistics.median(seconds["forward and losses only"]) / plain
        print(f"floor of two gradients from one graph: {floor:.2f} (a second backward, nothing else)", flush=True)
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, table[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    return 0 if all_equal else 1


if __name__ == "__main__":
    sys.exit(main())
