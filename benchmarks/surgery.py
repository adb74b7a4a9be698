"""What a step with gradient surgery costs: acl_grad and its peers, taking turns in one run.

    python benchmarks/surgery.py                     # MiniLM's shape, batch 8, 32, 128, on the CPU
    python benchmarks/surgery.py --device cuda --shape bert-base --csv surgery.csv
    python benchmarks/surgery.py --shape tiny --rounds 2             # does everything still run?

Timed: forward with dropout, losses, gradient in `.grad`, graph freed.  Not timed: optimizer step,
data.  fp32, random weights, random tokens, no padding, nothing is downloaded.  First it is checked
that contestants that should leave the same gradient do.  TorchJD takes part if it is installed
(benchmarks/requirements.txt).  README.md says what to expect.
"""

import ctypes
import random
import re
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import BertConfig, BertModel

import train
from exits import MultiExitBert
from grad_surgery import acl_grad, acl_grad_features, apply_rule
from tools.command_line import Parser
from tools.files import write_table
from tools.machine import device_name

try:
    import torchjd
    import torchjd.aggregation
    import torchjd.autojac
except ImportError:
    torchjd = None

NUM_LABELS = 2
SHAPES = {
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "vocab_size": 1000,
    },
    "minilm": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "bert-base": {},  # BertConfig's defaults
}

# The project's own losses, lambda and tau: with one exit acl-cl is acl-embed.
ARGS = train.parse_args(["--task", "rte", "--method", "acl-cl"])
WEIGHT = ARGS.weight


class Losses(NamedTuple):
    """One forward."""

    ce: torch.Tensor  # scalar
    acl: list  # of M scalars
    h: torch.Tensor  # (M, N, d)
    parameters: list


def forward(model, tokens, labels, sign=1):
    """Tokens (N, L), labels (N,) -> Losses, by the training step's own function.

    sign -1 negates the contrastive gradient: a conflict where there was none.
    """
    h, logits = model({"input_ids": tokens})
    ce_loss, acl_losses = train.losses(ARGS, model, h, logits, labels)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return Losses(ce_loss, [sign * loss for loss in acl_losses], h, parameters)


# ---------------------------------------------------------------------------- contestants
#
# Each takes Losses, leaves a gradient in `.grad`, and returns whether it saw a conflict (features:
# the share of exits that did), or None if it did not look.


def forward_only(losses):
    return None


def plain_ce(losses):
    losses.ce.backward()


def plain_sum(losses):
    (losses.ce + WEIGHT * sum(losses.acl)).backward()


def discard(losses):
    cosine = acl_grad(losses.ce, sum(losses.acl), losses.parameters, WEIGHT)
    return not cosine >= 0


def ours(rule):
    def gradient(losses):
        cosine = apply_rule(losses.ce, sum(losses.acl), losses.parameters, WEIGHT, rule)
        return not cosine >= 0
    return gradient


def ours_at_features(rule):
    def gradient(losses):
        cosines = acl_grad_features(*losses, WEIGHT, rule)
        return statistics.mean(not cosine >= 0 for cosine in cosines)
    return gradient


def batched_discard(losses):
    """`discard` with both gradients from one backward under vmap: the work of two, but half the
    launches on a GPU."""
    both = torch.stack([losses.ce, sum(losses.acl)])
    one_each = torch.eye(2, dtype=both.dtype, device=both.device)  # CE's gradient, the other's
    gradients = torch.autograd.grad(
        both, losses.parameters, one_each, is_grads_batched=True, allow_unused=True
    )  # each (2, ..)
    gradients = [(p, g) for p, g in zip(losses.parameters, gradients) if g is not None]
    # Unreached parameters are zeros here: right for the sign of the inner product, not for angles.
    dots = [g[0].flatten().dot(g[1].flatten()) for _, g in gradients]
    agree = torch.stack(dots).sum().item() >= 0
    for p, g in gradients:
        p.grad = g[0].add_(g[1], alpha=WEIGHT) if agree else g[0]
    return not agree


def flat_pcgrad(one_sided=False, masks=False):
    """PCGrad (arXiv 2001.06782) the way of github.com/WeiChengTseng/Pytorch-PCGrad, written anew
    from its description.

    One backward for each loss, its gradient joined into one long vector, zeros where the loss does
    not reach; each vector loses its component along any other it conflicts with; the sum is cut
    into parameters again.  Our weight goes into the second loss.  one_sided: only the contrastive
    vector is projected, which is our `project`.  masks: with that repository's element-wise masks
    of what a loss reaches, by which it merges shared and other elements apart.
    """
    def gradient(losses):
        flat, reached = [], []  # (P,) for each loss
        for loss in (losses.ce, WEIGHT * sum(losses.acl)):
            for p in losses.parameters:
                p.grad = None
            loss.backward(retain_graph=True)
            parts, masks_of_parts = [], []
            for p in losses.parameters:
                part = torch.zeros_like(p) if p.grad is None else p.grad.clone()
                parts.append(part.flatten())
                if masks:
                    masks_of_parts.append(torch.full_like(p, p.grad is not None).flatten())
            flat.append(torch.cat(parts))
            if masks:
                reached.append(torch.cat(masks_of_parts))
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
        pieces = merged.split([p.numel() for p in losses.parameters])
        for p, piece in zip(losses.parameters, pieces):
            p.grad = piece.view(p.shape).clone()
        return conflict
    return gradient


def torchjd_pcgrad(lean=False):
    """TorchJD's PCGrad as its documentation has it: fill `.jac` of all parameters, then aggregate
    it into `.grad`.  lean: with what it offers against vmap's cost and memory: one row of the
    Jacobian at a time, no joined copy."""
    def gradient(losses):
        both = [losses.ce, WEIGHT * sum(losses.acl)]
        chunk = 1 if lean else None
        torchjd.autojac.backward(both, inputs=losses.parameters, parallel_chunk_size=chunk)
        weights = torchjd.autojac.jac_to_grad(
            losses.parameters,
            torchjd.aggregation.PCGrad(),
            optimize_gramian_computation=lean,
        )
        return bool((weights != 1).any())  # without a conflict each row of the Jacobian weighs 1
    return gradient


CONTESTANTS = {
    "forward and losses only": forward_only,
    "plain CE": plain_ce,
    "plain sum": plain_sum,
    "acl_grad observe": ours("observe"),
    "acl_grad discard": discard,
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
    CONTESTANTS["TorchJD PCGrad"] = torchjd_pcgrad()
    CONTESTANTS["TorchJD PCGrad lean"] = torchjd_pcgrad(lean=True)

# (B, biases, As): each A must leave the gradient of B.  The classifiers' biases are what CE alone
# reaches.  PCGrad counts them in |g_CE|^2 and projects along them, acl_grad looks at what both
# losses reach: equal if they are frozen.
PEERS = ["flat PCGrad with masks", "TorchJD PCGrad", "TorchJD PCGrad lean"]
SAME = [
    ("plain sum", "trained", ["acl_grad observe", "acl_grad_features observe"]),
    ("acl_grad discard", "trained", ["batched discard"]),
    ("acl_grad project", "frozen", ["flat PCGrad one-sided"]),
    ("acl_grad project", "trained", ["flat PCGrad one-sided"]),
    ("flat PCGrad", "trained", PEERS),
]
DIFFERS_BY_DESIGN = SAME[3]


# --------------------------------------------------------------------------- measurements


def step(model, batch, gradient, seed, sign=1):
    """One step up to the gradient.  The same seed gives every contestant the same dropout masks."""
    torch.manual_seed(seed)
    return gradient(forward(model, *batch, sign))


def gradient_of(model, batch, contestant, sign):
    """(what a contestant leaves in `.grad`, zeros where that is None; what it saw)"""
    model.zero_grad()
    conflict = step(model, batch, contestant, 1, sign)
    gradients = []
    for p in model.parameters():
        gradients.append(torch.zeros_like(p) if p.grad is None else p.grad.clone())
    return gradients, conflict


def compare(model, batch, contestants, dtype, b, names):
    """{A: (largest difference to B's gradient, relative; whether A and B decided the same)}

    Once with the contrastive loss and once with its negative, so that one of the two is a
    conflict.  The largest difference of any element is taken over B's largest element, not
    parameter by parameter: the gradient of a key's bias in attention is 0 by construction, nothing
    but rounding to compare.
    """
    model.to(dtype)
    result = {a: (0.0, True) for a in names}
    for sign in (1, -1):
        theirs, expected = gradient_of(model, batch, contestants[b], sign)
        largest = max(y.abs().max().item() for y in theirs)
        for a in names:
            mine, saw = gradient_of(model, batch, contestants[a], sign)
            apart = max((x - y).abs().max().item() for x, y in zip(mine, theirs)) / largest
            before, agreed = result[a]
            agrees = expected is None or saw == expected
            result[a] = max(before, apart), agreed and agrees
    model.to(torch.float32)  # the same weights again: float64 holds them exactly
    return result


def check(model, batch, contestants):
    """Print how far gradients that should be equal differ; returns whether all agree in float64.

    float32, the one that is timed, shows what an inner product of 10^7 elements in one sum loses;
    acl_grad sums tensor by tensor, then in float64.
    """
    all_equal = True
    print(f"\n{'this gradient':27}{'should be that of':18}{'biases':8}{'float64':>9}{'float32':>9}"
          "  (relative difference)")
    for same in SAME:
        b, biases, names = same
        if b not in contestants:
            continue
        names = [a for a in names if a in contestants]
        for classifier in model.classifiers:
            classifier.bias.requires_grad_(biases == "trained")
        wide = compare(model, batch, contestants, torch.float64, b, names)
        narrow = compare(model, batch, contestants, torch.float32, b, names)
        for a in names:
            apart, agreed = wide[a]
            verdict = "NOT EQUAL"
            if apart < 1e-5 and agreed:
                verdict = "equal"
            elif same == DIFFERS_BY_DESIGN:
                verdict = "differs by design"
            all_equal = all_equal and verdict != "NOT EQUAL"
            print(f"{a:27}{b:18}{biases:8}{apart:9.0e}{narrow[a][0]:9.0e}  {verdict}", flush=True)
    model.requires_grad_(True)
    return all_equal


def clock(model, batch, contestants, rounds, device):
    """({name: [seconds of each round]}, {name: [what it saw in each round]})

    Round 0 warms up and is dropped.  In a round everyone runs once, in an order drawn anew: a slow
    moment of the machine hits all, and nobody always follows the same neighbour.  A round has one
    dropout seed, so decisions compare.  Every second round negates the contrastive gradient, so
    that both branches of a rule are timed.
    """
    seconds = {name: [] for name in contestants}
    conflicts = {name: [] for name in contestants}
    draw = random.Random(0)
    for r in range(rounds + 1):
        for name in draw.sample(list(contestants), len(contestants)):
            model.zero_grad(set_to_none=True)
            wait(device)
            start = time.perf_counter()
            sign = (-1) ** r
            conflict = step(model, batch, contestants[name], r, sign)  # its graph is gone here
            wait(device)
            if r:
                seconds[name].append(time.perf_counter() - start)
                conflicts[name].append(conflict)
    return seconds, conflicts


def peak_memory(model, batch, gradient, device):
    """The most that a step holds above the model at rest, in MB: activations, gradients, copies.
    None if unknown.

    CUDA: what PyTorch's allocator handed out.  CPU: growth of this process's resident memory, from
    the kernel's high-water mark (Linux), after freed memory was given back; so what allocator and
    libraries round up is in it.
    """
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        at_rest = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(model, batch, gradient, 1)
        return (torch.cuda.max_memory_allocated() - at_rest) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc: what earlier contestants freed goes back
        Path("/proc/self/clear_refs").write_text("5")  # 5: high-water mark = what is resident now
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
    """{name: peak_memory} of the contestants that get through a step here; the others are named.
    (vmap does not know every kernel.)"""
    able = {}
    for name, gradient in contestants.items():
        try:
            model.zero_grad(set_to_none=True)
            step(model, batch, gradient, 0)  # what is set up once shall not count
            able[name] = peak_memory(model, batch, gradient, device)
        except (RuntimeError, NotImplementedError) as error:
            text = str(error).strip().splitlines()[0][:80]
            print(f"{name}: left out, {type(error).__name__}: {text}")
    return able


# ----------------------------------------------------------------------------------- main

YARDSTICKS = ("forward and losses only", "plain CE", "plain sum")


def main(argv=None):
    p = Parser("benchmarks/surgery.py", description="Time and memory of a step with surgery.")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--shape", default="minilm", choices=SHAPES)
    p.add_argument("--batch-size", type=int, nargs="+", default=[8, 32, 128])
    p.add_argument("--length", type=int, default=64, help="tokens of each sample")
    p.add_argument("--exits", default="last", choices=("all", "last"))
    p.add_argument("--rounds", type=int, default=10, help="timed steps of each contestant")
    p.add_argument("--threads", type=int, help="CPU threads (torch's choice)")
    p.add_argument("--only", metavar="PATTERN", default="", help="beside the yardsticks those "
                   "whose name matches, a regular expression; without the check of equal gradients")
    p.add_argument("--csv", type=Path, help="also write the table to this file")
    args = p.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        p.error("--device cuda: no GPU to be seen")
    if min(args.rounds, args.length, *args.batch_size) < 1:
        p.error("--rounds, --length and --batch-size must be 1 or more")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    jd = "TorchJD is not installed: left out" if torchjd is None else "TorchJD takes part"
    print(f"{device_name(device)}, torch {torch.__version__}, {jd}")

    torch.manual_seed(0)
    config = BertConfig(**SHAPES[args.shape])
    model = MultiExitBert(BertModel(config), NUM_LABELS, args.exits).to(device).train()
    table, all_equal = [], True
    for batch_size in args.batch_size:
        tokens = torch.randint(config.vocab_size, (batch_size, args.length)).to(device)
        labels = (torch.arange(batch_size) % NUM_LABELS).to(device)
        batch = tokens, labels
        chosen = {}
        for name, gradient in CONTESTANTS.items():
            if name in YARDSTICKS or re.search(args.only, name):
                chosen[name] = gradient
        peak_mb = peaks(model, batch, chosen, device)
        contestants = {name: chosen[name] for name in peak_mb}

        # Equal at one batch size is equal at all.
        if not table and not args.only:
            all_equal = check(model, (tokens[:8], labels[:8]), contestants)
        seconds, conflicts = clock(model, batch, contestants, args.rounds, device)
        table += rows_of(args, batch_size, device, model, seconds, conflicts, peak_mb)
    if args.csv:
        write_table(table, args.csv)
    return 0 if all_equal else 1


def rows_of(args, batch_size, device, model, seconds, conflicts, peak_mb):
    """Print one batch size's table; returns its rows."""
    plain = statistics.median(seconds["plain sum"])
    parameter_mb = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    print(f"\n{args.shape}, batch {batch_size} x {args.length} tokens, exits {args.exits}, fp32, "
          f"parameters {parameter_mb:.0f} MB, {args.rounds} rounds")
    print(f"{'contestant':28}{'median ms':>10}{'min ms':>10}{'ratio':>8}{'peak MB':>10}"
          f"{'conflicts':>11}{'agree':>8}")
    rows = []
    for name, times in seconds.items():
        row = {
            "device": device_name(device),
            "torch": torch.__version__,
            "shape": args.shape,
            "batch_size": batch_size,
            "length": args.length,
            "exits": args.exits,
            "rounds": args.rounds,
            "contestant": name,
            "median_ms": 1000 * statistics.median(times),
            "min_ms": 1000 * min(times),
            "ratio": statistics.median(times) / plain,
            "peak_mb": peak_mb[name],
            "conflicts": None,
            "agree": None,
        }
        # agree: rounds decided as acl_grad discard did (features: with the share of the exits).
        if None not in conflicts[name] and "acl_grad discard" in conflicts:
            exact = conflicts["acl_grad discard"]
            row["conflicts"] = round(sum(conflicts[name]), 2)
            row["agree"] = round(sum(1 - abs(x - y) for x, y in zip(conflicts[name], exact)), 2)
        rows.append(row)
        peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        counts = [("-" if row[k] is None else row[k]) for k in ("conflicts", "agree")]
        print(f"{name:28}{row['median_ms']:10.1f}{row['min_ms']:10.1f}{row['ratio']:8.2f}{peak:>10}"
              f"{counts[0]:>11}{counts[1]:>8}")
    floor = 2 - statistics.median(seconds["forward and losses only"]) / plain
    print(f"floor of two gradients from one graph: {floor:.2f} (a second backward, nothing else)",
          flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
