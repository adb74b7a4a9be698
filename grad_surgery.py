"""ACL-Grad (arXiv 2602.03563): drop the contrastive gradient where it conflicts with CE's.

    g = g_CE + lambda * 1[ <g_CE, g_ACL> >= 0 ] * g_ACL           once per mini-batch

`acl_grad` is that rule; it can be copied alone and needs only torch.  g_ACL is the gradient of
the second loss, whichever contrastive loss that is.  Our reading: the inner product is taken over
the parameters that both losses reach; an inner product of 0 is no conflict, one that is not finite
is a conflict.
"""

import torch


def acl_grad(ce_loss, acl_loss, parameters, weight):
    """The paper's rule: put the gradient of one step into `.grad`; returns the cosine.

        g = g_CE + lambda * 1[ <g_CE, g_ACL> >= 0 ] * g_ACL                    [abstract]

    ce_loss, acl_loss: scalars of ONE forward; two would draw different dropout masks, and their
    gradients could not be compared.  The call frees their graph.  parameters: leaf tensors, the
    classifier's included: what is not among them gets no gradient.  weight: lambda >= 0.  `.grad`
    is replaced, not added to.  The cosine is NaN where the inner products are not finite, 0 where a
    gradient is zero.  Raises ValueError; torch raises RuntimeError where a loss has no graph.

    Caveat: torch's checkpoint(.., use_reentrant=True) hides the parameters inside it.  Where
    nothing below it is trained there is no error: they look unused and get None.  Use
    use_reentrant=False, as transformers does.

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

    # A frozen parameter has no gradient, and a non-leaf tensor keeps none.  Each parameter once,
    # or the product would count it twice.
    parameters = list(dict.fromkeys(p for p in parameters if p.requires_grad))
    if not all(p.is_leaf for p in parameters):
        raise ValueError("parameters must be an iterable of leaf tensors: model.parameters()")

    # Both gradients from one graph.  g_CE goes to .grad, where it is needed in any case; .grad is
    # None where CE does not reach.
    for p in parameters:
        p.grad = None
    ce_loss.backward(inputs=parameters, retain_graph=True)
    g_acl = torch.autograd.grad(acl_loss, parameters, allow_unused=True)

    # <g_CE, g_ACL>, |g_CE|^2 and |g_ACL|^2, in float32 or better: half precision would overflow.
    # Start with a row of zeros: there may be no parameter that both losses reach.
    products = [torch.zeros(3, device=ce_loss.device)]
    for p, g in zip(parameters, g_acl):
        if p.grad is not None and g is not None:
            precise = torch.promote_types(p.dtype, torch.float32)
            a = p.grad.flatten().to(precise)
            b = g.flatten().to(precise)
            products.append(torch.stack([a.dot(b), a.dot(a), b.dot(b)]))
    products = torch.stack(products).cpu().double()  # the only wait for the device here
    dot, ce_squared, acl_squared = products.sum(dim=0).tolist()

    # The paper's rule.  NaN fails both comparisons.  0 * g_ACL would not do: 0 * NaN is NaN.
    if 0 <= dot < float("inf"):
        for p, g in zip(parameters, g_acl):
            if p.grad is None and g is not None:
                p.grad = weight * g
            elif g is not None:
                p.grad.add_(g, alpha=weight)

    # A length of 0 means a zero gradient; then the dot product is 0 as well.
    length = (ce_squared * acl_squared) ** 0.5
    return dot / length if length else dot


# ------------------------------------------------------------------- not the paper's
#
# Other rules for the same two gradients, and the test at a place where it costs next to nothing.
# A backward takes about as long as two forwards.  So with any rule, a step with two backwards
# should take (1 + 2 + 2) / (1 + 2) = 1.67 times a plain step.  The test at the representations
# needs one backward: about 1.0 times.  Measured: benchmarks/README.md.

GRADIENT_RULES = {
    "observe": "keep everything: the plain sum, its angle measured (the paper's pilot)",
    "discard": "drop the contrastive gradient on conflict (the paper's ACL-Grad)",
    "project": "on conflict remove its part along CE's gradient (PCGrad, arXiv 2001.06782)",
    "weigh": "multiply it by max(0, cosine) (Du et al., arXiv 1812.02224)",
}


def apply_rule(ce_loss, acl_loss, parameters, weight, rule):
    """`acl_grad` with another rule.  Arguments, `.grad` and the returned cosine are the same.

        g = g_CE + lambda * (factor * g_ACL - removed * g_CE)

    rule: one of GRADIENT_RULES, else ValueError.  Example: acl_grad's two gradients.

    >>> w = torch.zeros(2, requires_grad=True)
    >>> for rule in GRADIENT_RULES:
    ...     cosine = apply_rule(w[0], w[1] - w[0], [w], weight=1.0, rule=rule)
    ...     print(rule, w.grad.tolist())
    observe [0.0, 1.0]
    discard [1.0, 0.0]
    project [1.0, 1.0]
    weigh [1.0, 0.0]
    """
    check(weight, rule, GRADIENT_RULES, ce_loss=ce_loss, acl_loss=acl_loss)

    # Both gradients, as in acl_grad: g_CE in .grad, and g_ACL.
    parameters = trainable(parameters)
    for p in parameters:
        p.grad = None
    ce_loss.backward(inputs=parameters, retain_graph=True)
    g_acl = torch.autograd.grad(acl_loss, parameters, allow_unused=True)

    # The angle, over the parameters that both losses reach.
    pairs = []
    for p, g in zip(parameters, g_acl):
        if p.grad is not None and g is not None:
            pairs.append((p.grad, g))
    products = inner_products(pairs)
    factor = factor_of(products, rule)

    # project: g_ACL - <g_ACL, g_CE> / |g_CE|^2 * g_CE
    removed = 0.0
    if rule == "project" and cosine_of(products) < 0:
        dot, ce_squared, _ = products.sum(dim=0).tolist()
        removed = dot / ce_squared

    # With a factor of 0 the term is left out, not multiplied by 0: 0 * NaN is NaN.
    for p, g in zip(parameters, g_acl):
        if g is None or factor == 0:
            continue
        if p.grad is None:
            p.grad = weight * factor * g
            continue
        if removed != 0:
            p.grad.mul_(1 - weight * removed)
        p.grad.add_(g, alpha=weight * factor)
    return cosine_of(products)


def acl_grad_features(ce_loss, acl_losses, h, parameters, weight, rule="discard"):
    """The same test at the representations, exit by exit, then one backward (our approximation).

        keep exit m's loss  <=>  < d L_CE / d h^m , d L_ACL^m / d h^m >  >=  0

    ce_loss: scalar.  acl_losses: list of M scalars, exit m's contrastive loss, reaching h only
    through h[m].  h: (M, N, d) of the same forward.  rule: observe, discard or weigh, else
    ValueError; project would need a gradient, not a factor.  `.grad` is replaced, as by acl_grad.
    Returns M cosines.
    """
    losses = {f"acl_losses[{m}]": acl_loss for m, acl_loss in enumerate(acl_losses)}
    check(weight, rule, ["observe", "discard", "weigh"], ce_loss=ce_loss, **losses)
    if not isinstance(h, torch.Tensor):
        raise ValueError(f"h must be one tensor (M, N, d), not {type(h).__name__}")
    if len(losses) != len(h):
        raise ValueError(f"acl_losses must be one for each of the {len(h)} exits of h, not "
                         f"{len(losses)}")

    # Both backward passes stop at h, just below the losses: a few small products, little work.
    g_ce = torch.autograd.grad(ce_loss, h, retain_graph=True)[0]  # (M, N, d)
    g_acl = torch.autograd.grad(sum(acl_losses), h, retain_graph=True)[0]  # (M, N, d)
    products = inner_products(zip(g_ce, g_acl)).split(1)  # M of (1, 3)

    # What is dropped is left out of the sum, not multiplied by 0: 0 * NaN is NaN.
    total = ce_loss
    for acl_loss, of_exit in zip(acl_losses, products):
        factor = factor_of(of_exit, rule)
        if factor != 0:
            total = total + weight * factor * acl_loss

    # The one backward through the model.
    parameters = trainable(parameters)
    for p in parameters:
        p.grad = None
    total.backward(inputs=parameters)
    return [cosine_of(of_exit) for of_exit in products]


def inner_products(pairs):
    """<a, b>, |a|^2, |b|^2 of P pairs of tensors: (P, 3) float64 on the CPU; zeros if no pair."""
    triples = []
    for a, b in pairs:
        precise = torch.promote_types(a.dtype, torch.float32)
        a = a.flatten().to(precise)
        b = b.flatten().to(precise)
        triples.append(torch.stack([a.dot(b), a.dot(a), b.dot(b)]))
    if not triples:
        triples = [torch.zeros(3, device="cpu")]
    return torch.stack(triples).cpu().double()  # one wait for the device, for all together


def cosine_of(products):
    """Cosine from `inner_products`, or from some of their rows, such as one layer's.

    NaN where something is not finite, 0 where a gradient is zero.
    """
    dot, ce_squared, acl_squared = products.sum(dim=0).tolist()
    length = (ce_squared * acl_squared) ** 0.5
    return dot / length if length else dot


def factor_of(products, rule):
    """A rule's factor for g_ACL.  A cosine that is not finite counts as a conflict."""
    cosine = cosine_of(products)
    if rule == "observe":
        return 1.0
    if rule == "weigh":
        return cosine if cosine > 0 else 0.0
    if rule == "project" and cosine < 0:
        return 1.0
    return 1.0 if cosine >= 0 else 0.0


def check(weight, rule, rules, **losses):
    """Raise a ValueError that names the wrong argument; `acl_grad` has its own copy of this."""
    if rule not in rules:
        raise ValueError(f"rule must be one of {', '.join(rules)}, not {rule!r}")
    for name, loss in losses.items():
        if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
            raise ValueError(f"{name} must be a scalar tensor, not {loss!r:.60}")
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight must be a number of 0 or more, not {weight}")


def trainable(parameters):
    """The parameters that require a gradient, each once; ValueError for a non-leaf tensor."""
    parameters = list(dict.fromkeys(p for p in parameters if p.requires_grad))
    if not all(p.is_leaf for p in parameters):
        raise ValueError("parameters must be an iterable of leaf tensors: model.parameters()")
    return parameters
