"""How often do the two conflict tests agree?

    python benchmarks/gates.py --task rte --method acl-cl --data data --model minilm \
      --pooling mean --lr 1e-4 --epochs 1 --output runs/gates

All options are train.py's.  The run follows the exact test, at the parameters; at the same step
and on the same graph the other one, at the representations, says for each exit whether it would
keep that exit's contrastive loss.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grad_surgery
import train

at_parameters = []  # of each step: kept?
at_features = []  # of each step: [kept?] of each exit

plain_losses = train.losses
plain_acl_grad = grad_surgery.acl_grad


def losses_and_opinion(args, model, h, logits, labels):
    """train.losses, and what the test at the representations says of them."""
    ce_loss, acl_losses = plain_losses(args, model, h, logits, labels)
    g_ce = torch.autograd.grad(ce_loss, h, retain_graph=True)[0]  # (M, N, d)
    g_acl = torch.autograd.grad(sum(acl_losses), h, retain_graph=True)[0]  # (M, N, d)
    inner_products = (g_ce * g_acl).sum(dim=(1, 2))  # (M,)
    at_features.append((inner_products >= 0).tolist())
    return ce_loss, acl_losses


def acl_grad_and_opinion(*arguments):
    """grad_surgery.acl_grad, and what it decided."""
    cosine = plain_acl_grad(*arguments)
    at_parameters.append(cosine >= 0)
    return cosine


def report(name, kept, kept_by_exit):
    """Print how many steps each test drops, and in how many they agree."""
    steps = range(len(kept))
    exits = range(len(kept_by_exit[0]))
    dropped = percent(not kept[s] for s in steps)
    dropped_by_exit = [percent(not kept_by_exit[s][m] for s in steps) for m in exits]
    same = percent(kept[s] == keep for s in steps for keep in kept_by_exit[s])
    same_at_deepest = percent(kept[s] == kept_by_exit[s][-1] for s in steps)
    print(f"{name}: dropped at the parameters {dropped:.1f} %, at the features of each exit "
          + " ".join(f"{share:.1f}" for share in dropped_by_exit)
          + f" %; same decision {same:.1f} % (deepest exit {same_at_deepest:.1f} %)")


def percent(answers):
    answers = list(answers)
    return 100 * sum(answers) / len(answers)


if __name__ == "__main__":
    args = train.parse_args([*sys.argv[1:], "--conflict", "discard"])
    train.losses = losses_and_opinion
    grad_surgery.acl_grad = acl_grad_and_opinion
    status = train.main(args)
    if status == 0 and at_parameters:
        tenth = max(1, len(at_parameters) // 10)
        report(f"all {len(at_parameters)} steps", at_parameters, at_features)
        report(f"first {tenth} steps", at_parameters[:tenth], at_features[:tenth])
    sys.exit(status)
