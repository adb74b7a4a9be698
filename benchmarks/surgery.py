"""What a step with gradient surgery costs: acl_grad and its peers, taking turns in one run.

    python benchmarks/surgery.py                                     # MiniLM's shape, batch 8
    python benchmarks/surgery.py --shape bert-base --batch-size 32 --device cuda
    python benchmarks/surgery.py --shape tiny --rounds 2             # does everything still run?

A step is a forward with dropout, the losses, and the gradient in `.grad`.  The optimizer and the
data are left out.  Weights and tokens are random, in fp32 and without padding, and nothing is
downloaded.  TorchJD takes part where it is installed (benchmarks/requirements.txt).
"""

import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pandas
import torch
from transformers import BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from exits import MultiExitBert
from grad_surgery import acl_grad, acl_grad_features
from tools.errors import Parser
from tools.machine import device_name

try:
    from torchjd.aggregation import PCGrad
    from torchjd.autojac import backward, jac_to_grad
except ImportError:
    PCGrad = None

TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "vocab_size": 1000,
}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
SHAPES = {"tiny": TINY, "minilm": MINILM, "bert-base": {}}  # {}: BertConfig's defaults

# The project's own losses, lambda and tau.
ONE_EXIT, ALL_EXITS = train.parse_args(["--task", "rte", "--method", "acl-embed", "acl-cl"])
WEIGHT = ONE_EXIT.weight


class Losses(NamedTuple):
    """What one forward gives to a contestant."""

    ce: torch.Tensor  # scalar
    acl: torch.Tensor  # (M,)
    h: torch.Tensor  # (M, N, d)
    parameters: list


# ---------------------------------------------------------------------------- contestants
#
# Each takes Losses and leaves a gradient in `.grad`.


def forward_only(losses):
    pass


def plain_ce(losses):
    losses.ce.backward()


def plain_sum(losses):
    (losses.ce + WEIGHT * losses.acl.sum()).backward()


def exact_gate(losses):
    """The paper's rule, as this project has it."""
    acl_grad(losses.ce, losses.acl.sum(), losses.parameters, WEIGHT)


def gate_at_features(losses):
    """The test at the representations, exit by exit."""
    acl_grad_features(*losses, WEIGHT)


def torchjd_pcgrad(losses):
    """TorchJD's PCGrad, as its documentation has it."""
    backward([losses.ce, WEIGHT * losses.acl.sum()], inputs=losses.parameters)
    jac_to_grad(losses.parameters, PCGrad())


CONTESTANTS = {
    "forward and losses": forward_only,
    "plain CE": plain_ce,
    "plain sum": plain_sum,
    "acl_grad": exact_gate,
    "acl_grad_features": gate_at_features,
}
if PCGrad is not None:
    CONTESTANTS["TorchJD PCGrad"] = torchjd_pcgrad


# ----------------------------------------------------------------------------- measurements


def model_and_batch(shape, exits, size, device):
    """A model with random weights, and a batch of random tokens and both classes in turn."""
    torch.manual_seed(0)
    config = BertConfig(**SHAPES[shape])
    model = MultiExitBert(BertModel(config), 2, exits, "cls").to(device).train()
    tokens = torch.randint(config.vocab_size, (size, 64), device=device)
    labels = torch.arange(size, device=device) % 2
    return model, {"input_ids": tokens, "label": labels}


def step(model, batch, contestant, seed, sign=1):
    """One step up to the gradient.

    Equal seeds draw equal dropout masks.  sign -1 turns the contrastive gradient round, which
    makes a conflict where there was none.
    """
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    h, logits = model(batch)
    args = ONE_EXIT if len(h) == 1 else ALL_EXITS
    ce_loss, acl_losses = train.losses(args, model, h, logits, batch["label"])
    contestant(Losses(ce_loss, sign * acl_losses, h, list(model.parameters())))


def clock(model, batch, rounds, device):
    """Seconds of each contestant in each round, as a table with a column for each contestant.

    In a round each contestant runs once, in an order drawn anew, so that a slow moment of the
    machine hits all of them.  Every second round turns the contrastive gradient round, so that
    both decisions are timed.  Round 0 warms up and is dropped.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else torch.cpu.synchronize
    table = []  # of {contestant: seconds}
    for number in range(rounds + 1):
        seconds = {}
        for name in random.sample(list(CONTESTANTS), len(CONTESTANTS)):
            wait()
            start = time.perf_counter()
            step(model, batch, CONTESTANTS[name], number, (-1) ** number)
            wait()
            seconds[name] = time.perf_counter() - start
        table.append(seconds)
    return pandas.DataFrame(table[1:], columns=list(CONTESTANTS))


def peak_memory(model, batch, contestant):
    """The most that a step holds on a GPU beside the model at rest, in MB: activations, gradients
    and copies."""
    model.zero_grad(set_to_none=True)
    at_rest = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(model, batch, contestant, 0)
    return (torch.cuda.max_memory_allocated() - at_rest) / 1e6


# ----------------------------------------------------------------------------- the command


def parse_args(argv=None):
    p = Parser("benchmarks/surgery.py", description="Time and memory of a step with surgery.")
    add = p.add_argument
    add("--device", default="cpu", choices=("cpu", "cuda"), help="(%(default)s)")
    add("--shape", default="minilm", choices=SHAPES, help="of the encoder (%(default)s)")
    add("--exits", default="last", choices=("all", "last"), help="(%(default)s)")
    add("--batch-size", type=int, default=8, help="samples of 64 tokens (%(default)s)")
    add("--rounds", type=int, default=10, help="timed steps of each contestant (%(default)s)")
    return p.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = torch.device(args.device)
    print(f"{args.shape}, exits {args.exits}, batch {args.batch_size}, {device_name(device)}, "
          f"torch {torch.__version__}, median of {args.rounds} rounds\n")

    model, batch = model_and_batch(args.shape, args.exits, args.batch_size, device)
    seconds = clock(model, batch, args.rounds, device)
    table = pandas.DataFrame({"ms": 1000 * seconds.median()})
    table["ratio"] = table.ms / table.ms["plain sum"]
    if args.device == "cuda":  # a CPU's allocator does not tell
        table["peak MB"] = [peak_memory(model, batch, c) for c in CONTESTANTS.values()]
    print(table.round(2).to_string())
    floor = 2 - table.ratio["forward and losses"]
    print(f"\nratio of one more backward and nothing else: {floor:.2f}")


if __name__ == "__main__":
    main()
