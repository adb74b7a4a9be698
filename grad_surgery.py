"""ACL-Grad (arXiv 2602.03563): drop the contrastive gradient in each step where it conflicts with cross-entropy's.

    g = g_CE + lambda * 1[ <g_CE, g_ACL> >= 0 ] * g_ACL            once per mini-batch            (paper, ACL-Grad)

g_CL in the code is g_ACL: the gradient of the second loss, whichever it is (CL: contrastive, not ACL-CL's cross-layer).
Our reading where the paper is silent: the inner product runs over the parameters that *both* losses reach, a tie at 0 is
no conflict, and an inner product that is not finite is one.  Pure functions on tensors: copy them as they stand.

What it costs.  A backward takes two forwards.  `acl_grad` needs both gradients apart, so two backwards of one graph:
(1 + 2 + 2) / (1 + 2) = 1.67 of a plain step.  `acl_grad_features` asks the same at the representations h, where both are nearly
free, and then runs one backward: about 1.0 of a plain step, an approximation, and a decision for each exit by itself.

    python grad_surgery.py runs/rte_acl-grad_1               # the angles of finished runs: results/angles.py
"""

import math
import runpy
from pathlib import Path
from typing import NamedTuple

import torch

# A new rule: a line here and a branch in _decide; one that is more than a factor: refuse it where project is refused.
RULES = {
    "observe": "keep everything: the plain sum, its angle measured (the paper's pilot)",
    "discard": "drop the contrastive gradient on conflict (the paper's ACL-Grad)",
    "project": "on conflict remove its component along cross-entropy's gradient (PCGrad, arXiv 2001.06782, one-sided)",
    "weigh": "multiply it by max(0, cosine) (Du et al., arXiv 1812.02224)",
}


class Conflict(NamedTuple):
    """What a conflict test saw.  cosine and angle (degrees) between both gradients; NaN where they are not finite, and
    0 and 90 where one of them is zero.  kept: length of what was added over length of the contrastive gradient, so 1 or 0
    under `discard`, max(0, cosine) under `weigh`, the sine of the angle on conflict under `project`, 1 under `observe`.
    products: what the cosine is made of, a triple <g_CE, g_CL>, |g_CE|^2, |g_CL|^2 for each parameter (None where a loss does
    not reach it) or for each exit."""
    cosine: float
    angle: float
    kept: float
    products: list


def acl_grad(ce_loss, cl_loss, parameters, weight, rule="discard", average=lambda gradient: gradient):
    """Set `.grad` of all parameters to g_CE + weight * (what the rule leaves of g_CL), and say what was seen.

    ce_loss, cl_loss: scalars from ONE forward.  (Two forwards would have two sets of dropout masks, whose gradients
    cannot be compared.)  The graph is freed.  parameters: an iterable of leaf tensors; weight: lambda >= 0; rule: one of
    RULES, else ValueError.  Returns a Conflict.  `.grad` is replaced, not added to: to accumulate, sum the losses before.  A
    parameter that no loss (or only the dropped one) reaches gets None, so that AdamW leaves it alone.
    average: with several processes, gradient -> its mean over them, taken before the test so that all decide alike.

    Example: g_CE = (1, 0) and g_CL = (-1, 1) meet at 135 degrees.  With weight 1 `discard` gives (1, 0), `project` removes
    (-1, 0) and gives (1, 1), `weigh` gives (1, 0), `observe` (0, 1).

    >>> w = torch.zeros(2, requires_grad=True)
    >>> seen = acl_grad(w[0], w[1] - w[0], [w], weight=1.0, rule="project")
    >>> round(seen.angle), w.grad
    (135, tensor([1., 1.]))
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, not {rule!r}")
    parameters = [p for p in parameters if p.requires_grad]
    g_ce = [average(g) for g in torch.autograd.grad(ce_loss, parameters, retain_graph=True, allow_unused=True)]
    g_cl = [average(g) for g in torch.autograd.grad(cl_loss, parameters, allow_unused=True)]

    # Why only shared parameters: the classifier's bias gets no contrastive gradient, the dot there is 0, and its length
    # in the cosine's denominator would bend every angle towards 90 degrees.
    shared = [a is not None and b is not None for a, b in zip(g_ce, g_cl)]
    flat = [(a.flatten(), b.flatten()) for a, b, both in zip(g_ce, g_cl, shared) if both]   # views, mostly: no flat copy
    triples = [torch.stack([a.dot(b), a.dot(a), b.dot(b)]) for a, b in flat]
    found = iter(torch.stack(triples).double().tolist() if triples else [])                 # the only wait for the device
    products = [next(found) if both else None for both in shared]
    conflict, along_ce, along_cl = _decide(products, rule)

    taken = set()
    own = [a if a is None else _own(a, taken) for a in g_ce]     # before the first is changed in place
    for p, a, b in zip(parameters, own, g_cl):
        p.grad = a
        if b is not None and along_cl:               # never 0 * g_CL: 0 * NaN is NaN
            if a is not None and along_ce:
                a.mul_(1 + weight * along_ce)
            p.grad = b * (weight * along_cl) if a is None else a.add_(b, alpha=weight * along_cl)
    return conflict


def acl_grad_features(ce_loss, cl_losses, h, weight, rule="discard"):
    """The same test at the representations, one decision per exit, then a single backward (our approximation).

        keep exit m's term  <=>  < d L_CE / d h^m , d L_CL^m / d h^m >  >=  0

    ce_loss: scalar.  cl_losses: list of M scalars, exit m's contrastive term, reaching h only through h[m].  (A list: a NaN
    among the entries of one tensor would reach the others, since backward multiplies it by 0.)  h: (M, N, d), of the same
    forward.  rule: observe, discard or weigh, else ValueError (project would need a gradient, not a factor).
    Adds to `.grad`, as any backward does: clear it before.  Returns a Conflict whose products hold one triple per exit and
    whose cosine, angle and kept are means over the exits, each of which decides for itself (discard: kept is their share).
    """
    if rule not in RULES or rule == "project":
        raise ValueError(f"rule must be observe, discard or weigh, not {rule!r}")
    # Both walks end at h, just below the losses: a few matrix products of size N x K, next to nothing.
    g_ce, = torch.autograd.grad(ce_loss, h, retain_graph=True)                              # (M, N, d)
    g_cl, = torch.autograd.grad(sum(cl_losses), h, retain_graph=True)                      # (M, N, d)
    products = torch.stack([(g_ce * g_cl).sum((1, 2)), (g_ce * g_ce).sum((1, 2)), (g_cl * g_cl).sum((1, 2))], dim=1)
    products = products.double().tolist()                                    # (M, 3), and the only wait for the device
    seen, _, factors = zip(*(_decide([triple], rule) for triple in products))
    # Dropped terms are left out of the sum, not multiplied by 0, so that a NaN among them stays out.
    (ce_loss + weight * sum(factor * term for factor, term in zip(factors, cl_losses) if factor)).backward()
    means = [sum(column) / len(seen) for column in zip(*(conflict[:3] for conflict in seen))]        # cosine, angle, kept
    return Conflict(*means, products)


def _own(gradient, taken):
    """The gradient itself if nobody else holds its memory, else a copy.  Autograd may hand out ONE tensor as the gradient
    of two parameters (two biases in a sum, say): adding to it in place, here or when clipping, would count twice."""
    if gradient.data_ptr() in taken or not gradient.is_contiguous():
        gradient = gradient.clone(memory_format=torch.contiguous_format)
    taken.add(gradient.data_ptr())
    return gradient


def _decide(products, rule):
    """products: triples (dot, |g_CE|^2, |g_CL|^2) or None.  Returns the Conflict and the factors (along_ce, along_cl) of

        g = g_CE + weight * (along_ce * g_CE + along_cl * g_CL)          along_ce is not 0 under `project` alone
    """
    dot, ce2, _ = _sums(products)
    cos = cosine(products)
    agree = cos >= 0                                 # NaN, for which every comparison is false, is a conflict
    along_ce, along_cl, kept = 0.0, 1.0, 1.0
    if rule == "discard" and not agree or rule != "observe" and math.isnan(cos):
        along_cl = kept = 0.0
    elif rule == "project" and not agree:
        along_ce, kept = -dot / ce2, math.sqrt(1 - cos**2)         # g_CL - <g_CL, g_CE> / |g_CE|^2 * g_CE
    elif rule == "weigh":
        along_cl = kept = max(0.0, cos)
    return Conflict(cos, math.degrees(math.acos(cos)), kept, products), along_ce, along_cl       # acos(NaN) is NaN


def cosine(products):
    """Cosine between two gradients from their parts' triples (dot, |g_CE|^2, |g_CL|^2), None left out; a Conflict's
    `products` or some of them, a layer's say.  NaN where something is not finite, 0 where a gradient is zero."""
    dot, ce2, cl2 = _sums(products)
    if not (math.isfinite(dot) and math.isfinite(ce2) and math.isfinite(cl2)):
        return math.nan
    length = math.sqrt(ce2) * math.sqrt(cl2)
    return max(-1.0, min(1.0, dot / length)) if length else 0.0


def _sums(products):
    return [sum(column) for column in zip((0.0, 0.0, 0.0), *(triple for triple in products if triple is not None))]


if __name__ == "__main__":                           # the report is no part of the method
    runpy.run_path(str(Path(__file__).parent / "results" / "angles.py"), run_name="__main__")
