"""ACL-Grad (arXiv 2602.03563): drop the contrastive gradient where it conflicts with CE's.

    g = g_CE + lambda * 1[ <g_CE, g_ACL> >= 0 ] * g_ACL           once per mini-batch

`acl_grad` is that rule.  It needs only torch, so it can be copied alone.  g_ACL is the gradient of
the second loss, whichever contrastive loss that is.  Our reading: the inner product is taken over
the parameters that both losses reach; an inner product of 0 is no conflict, and one that is not
finite is a conflict.
"""

from collections import Counter

import torch


def acl_grad(ce_loss, acl_loss, parameters, weight, drop=True):
    """Add one step's gradient to `.grad`, as `.backward()` does; returns the cosine.

        g = g_CE + lambda * 1[ <g_CE, g_ACL> >= 0 ] * g_ACL                    [abstract]

    ce_loss, acl_loss: scalars of one forward.  (Two forwards would draw different dropout masks,
    and their gradients could not be compared.)  The call frees acl_loss's graph.  parameters: leaf
    tensors, the classifier's included; what is not among them gets no gradient.  weight: lambda,
    0 or more.  drop=False keeps g_ACL in a conflict, too, and so only watches: the paper's pilot.
    The cosine between g_CE and g_ACL is NaN where they are not finite, 0 where one is zero.
    Raises ValueError before anything is added; torch raises RuntimeError for a loss without graph.
    `.grad` may be the very tensor that the backward made, so a custom autograd.Function must not
    return a tensor that it keeps.

    >>> w = torch.zeros(2, requires_grad=True)
    >>> cosine = acl_grad(w[0], w[1] - w[0], [w], weight=1.0)  # (1, 0), (-1, 1): 135 degrees
    >>> round(cosine, 2), w.grad
    (-0.71, tensor([1., 0.]))
    """
    for name, loss in {"ce_loss": ce_loss, "acl_loss": acl_loss}.items():
        if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
            raise ValueError(f"{name} must be a scalar tensor, not {loss!r:.60}")
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight must be a number of 0 or more, not {weight}")
    is_module = isinstance(parameters, torch.nn.Module)
    parameters = [parameters] if is_module else list(parameters)
    if not all(isinstance(p, torch.Tensor) and p.is_leaf for p in parameters):
        raise ValueError("parameters must be leaf tensors, such as model.parameters()")

    # Both gradients from one graph; None where a loss does not reach.  A frozen parameter has no
    # gradient, and a tied one counts once in the inner product.
    parameters = list(dict.fromkeys(p for p in parameters if p.requires_grad))
    g_ce = torch.autograd.grad(ce_loss, parameters, retain_graph=True, allow_unused=True)
    g_acl = torch.autograd.grad(acl_loss, parameters, allow_unused=True)
    for g in g_ce + g_acl:
        if g is not None and (g.is_sparse or g.is_complex()):
            raise ValueError("acl_grad needs dense, real gradients; found a sparse or complex one")

    # <g_CE, g_ACL>, |g_CE| and |g_ACL|, over the parameters that both losses reach, in float32 or
    # better: half precision would overflow.
    ours, theirs = [], []
    for a, b in zip(g_ce, g_acl):
        if a is None or b is None:
            continue
        precise = torch.float32 if a.dtype.itemsize < 4 else a.dtype
        ours.append(a.flatten().to(precise))
        theirs.append(b.flatten().to(precise))
    products = [a.dot(b) for a, b in zip(ours, theirs)]
    products.append(torch.nn.utils.get_total_norm(ours))
    products.append(torch.nn.utils.get_total_norm(theirs))

    # All these numbers in one transfer, since each transfer waits for the device.
    *dots, ce_length, acl_length = torch.stack(products).tolist()
    dot = sum(dots, start=0.0)

    # The paper's rule.  NaN fails both comparisons.  0 * g_ACL would not do: 0 * NaN is NaN.
    is_kept = not drop or 0 <= dot < float("inf")

    # g_CE becomes .grad without a copy where it is laid out as its parameter, which optimizers
    # rely on, and where autograd did not give out its memory twice, as for the terms of a sum.
    times_given = Counter(g.untyped_storage().data_ptr() for g in g_ce if g is not None)
    for p, a, b in zip(parameters, g_ce, g_acl):
        if a is not None and p.grad is not None:
            p.grad.add_(a)
        elif a is not None:
            is_alone = times_given[a.untyped_storage().data_ptr()] == 1
            if is_alone and a.stride() == p.stride():
                p.grad = a
            else:
                p.grad = torch.empty_like(p).copy_(a)
        if b is not None and is_kept:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            p.grad.add_(b, alpha=weight)

    # A length of 0 means a zero gradient (or one too small for float32); the product is then 0.
    length = ce_length * acl_length
    return dot / length if length else dot


# ------------------------------------------------------------------- not the paper's
#
# The same test at a place where it costs next to nothing.  A backward takes about as long as two
# forwards.  So a step with acl_grad's two backwards should take (1 + 2 + 2) / (1 + 2) = 1.67 times
# a plain step.  The test at the representations needs one backward: about 1.0 times.  Both are
# measured in benchmarks/README.md.


def acl_grad_features(ce_loss, acl_losses, h, parameters, weight, drop=True):
    """The test at the representations, exit by exit, then one backward (our approximation).

        keep exit m's loss  <=>  < d L_CE / d h^m , d L_ACL^m / d h^m >  >=  0

    ce_loss: scalar.  acl_losses: (M,), exit m's contrastive loss, which reaches h only through
    h[m].  h: (M, N, d) of the same forward.  parameters, weight, drop and `.grad` are as in
    acl_grad, though not checked.  Returns M cosines.  Raises ValueError where h and acl_losses do
    not fit.
    """
    if not isinstance(h, torch.Tensor) or acl_losses.shape != h.shape[:1]:
        raise ValueError("h must be one tensor (M, N, d), and acl_losses (M,)")

    # Both backward passes stop at h, just below the losses: a few small products, little work.
    g_ce = torch.autograd.grad(ce_loss, h, retain_graph=True)[0].flatten(1)  # (M, N d)
    g_acl = torch.autograd.grad(acl_losses.sum(), h, retain_graph=True)[0].flatten(1)  # (M, N d)
    dots = (g_ce.float() * g_acl.float()).sum(dim=1)  # (M,)
    lengths = g_ce.float().norm(dim=1) * g_acl.float().norm(dim=1)  # (M,)

    # One backward of what is kept through the whole model.  (A loss that is not finite spoils it,
    # dropped or not: its gradient is 0 * NaN.)
    is_kept = (dots >= 0) & dots.isfinite() if drop else torch.ones_like(dots, dtype=torch.bool)
    total = ce_loss + weight * (is_kept * acl_losses).sum()
    total.backward(inputs=[p for p in parameters if p.requires_grad])
    return (dots / lengths.where(lengths > 0, 1)).tolist()
