"""The losses of ACL (arXiv 2602.03563) as pure functions: tensors in, one loss an exit out.

A classifier scores a representation h_i against the rows l_1 .. l_K of its weight matrix.  Row
l_k is the *label embedding* of class k.  Cross-entropy moves h_i towards l_{y_i}.  Supervised
contrastive learning (SCL) moves samples of one class towards each other, wherever the label
embeddings are, so the two losses can pull h_i in different directions.

    ACL-Embed   lets the label embeddings take part: they are K more samples, l_k labelled k.
    ACL-CL      moves the samples of a multi-exit BERT's other exits towards its deepest exit.

The three contrastive losses are one formula, `contrastive_loss`, with different anchors and keys:

                anchors                   keys                              source
    SCL         h_1..h_N                  h_1..h_N                          arXiv 2011.01403
    ACL-Embed   h_1..h_N, l_1..l_K        h_1..h_N, l_1..l_K                abstract, second-hand
    ACL-CL      student's h_1..h_N        teacher's h_1..h_N, l_1..l_K      abstract; the keys:
                                                                            our reading

Sources: abstract, the paper's words; second-hand, a summary or earlier code of one author.
Letters: N samples, K classes, d hidden size, A anchors, B keys; tau is the temperature.
Formulas count from 1, indices from 0.  Every loss takes any dimensions before the last two, such
as the M exits of a multi-exit BERT: h (M, N, d) gives M losses, h (N, d) gives a scalar.  Losses
are float32, in nats, even under autocast.  A loss that is copied needs `contrastive_loss`, `unit`,
`check` and `shown` beside it.
"""

import torch
import torch.nn.functional as F


# ------------------------------------------------------------------------------ the kernel


def contrastive_loss(anchors, keys, positive, temperature, exclude_self=False):
    """Supervised contrastive loss of anchors against keys (SupCon's L_out, arXiv 2004.11362).

        z = x / ||x||
        log_prob(b|a) = z_a.z_b / tau - log sum_{b'} exp(z_a.z_b' / tau)
        L = mean_a  -1/|P(a)| sum_{p in P(a)} log_prob(p|a)     over anchors that have a positive

    P(a): a's positives, the keys of its class.
    anchors (.., A, d), keys (.., B, d); positive (A, B) bool, True where key b is in P(a).
    exclude_self: the keys are the anchors, and no anchor is its own key.  Returns (..); without
    any positive the loss is 0 (with a graph), not NaN.
    """
    # z_a.z_b / tau.  Autocast is off: bf16 rounds to 8 bits, too coarse for exp(cosine / 0.01).
    with torch.autocast(anchors.device.type, enabled=False):
        z_a = unit(anchors)  # (.., A, d)
        z_b = unit(keys)  # (.., B, d)
        similarity = z_a @ z_b.mT / temperature  # (.., A, B)

    # An anchor is not its own key: b = a leaves both sums.  The mask is the lowest number instead
    # of -inf: in a batch of one no key is left, and log_prob(a|a) would be -inf - (-inf) = NaN.
    if exclude_self:
        itself = torch.eye(len(positive), dtype=torch.bool, device=positive.device)  # (A, A)
        positive = positive & ~itself
        lowest = torch.finfo(similarity.dtype).min
        similarity = similarity.masked_fill(itself, lowest)

    # log_prob(b|a), with logsumexp: exp alone overflows at a small temperature.
    log_prob = similarity - similarity.logsumexp(dim=-1, keepdim=True)  # (.., A, B)

    # -1/|P(a)| sum_{p in P(a)} log_prob(p|a).  Without a positive: 0 / 1 = 0, not 0 / 0.
    size_of_P = positive.sum(dim=-1)  # (A,)
    sum_over_P = log_prob.masked_fill(~positive, 0).sum(dim=-1)  # (.., A)
    loss_of_a = -sum_over_P / size_of_P.clamp(min=1)  # (.., A)

    # The mean over anchors with a positive.  The others add 0 and are not counted.
    anchors_with_positive = (size_of_P > 0).sum()
    return loss_of_a.sum(dim=-1) / anchors_with_positive.clamp(min=1)


def unit(x):
    """z = x / ||x|| of each vector of x (.., d), in float32.  A zero vector stays 0."""
    x = x.float()
    length = x.norm(dim=-1, keepdim=True)  # (.., 1)
    # F.normalize divides a zero vector by 1e-12, and so multiplies its gradient by 1e12.
    length = length.masked_fill(length == 0, float("inf"))
    return x / length


# ------------------------------------------------------------------------------ the losses


def scl_loss(h, labels, temperature):
    """Supervised contrastive loss over a batch (Gunel et al., arXiv 2011.01403), the baseline.

        L_SCL = mean_i  -1/|P(i)| sum_{p in P(i)} log prob(p|i)
        prob(b|i) = exp(z_i.z_b / tau) / sum_{b' != i} exp(z_i.z_b' / tau)
        P(i):    the other samples of the batch that have sample i's label

    h (.., N, d), labels (N,) int64, temperature tau > 0; returns (..).  A sample that is alone in
    its class is not an anchor.  Raises ValueError.
    """
    check(temperature, labels, h=h)
    positive = labels[:, None] == labels[None, :]  # (N, N)
    return contrastive_loss(h, h, positive, temperature, exclude_self=True)


def acl_embed_loss(h, labels, label_embeddings, temperature):
    """ACL-Embed: SCL over samples and label embeddings (abstract; the anchors second-hand).

        items {h_1 .. h_N, l_1 .. l_K} with labels {y_1 .. y_N, 1 .. K}, then L_SCL over them

    h (.., N, d); labels (N,) int64 in 0..K-1; label_embeddings (.., K, d), the weight of each
    exit's classifier, not detached: gradients must flow into it.  Returns (..), one loss for each
    exit.  Raises ValueError.

    Label embeddings are anchors, too.  Example: labels [0, 0], K = 3.  The items' labels are
    [0, 0, 0, 1, 2].  Label embeddings 1 and 2 have no positive, so they are no anchors, but they
    stay in every denominator: the samples are pushed away from them.

    >>> h = torch.tensor([[5.0, 0.0]])                     # on the label embedding of its class
    >>> label_embeddings = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])         # the other: opposite
    >>> acl_embed_loss(h, torch.tensor([0]), label_embeddings, temperature=1.0)   # log(1 + e^-2)
    tensor(0.1269)
    """
    check(temperature, labels, h=h, label_embeddings=label_embeddings)

    # Label embedding k is one more sample, labelled k.
    items = torch.cat([h.float(), label_embeddings.float()], dim=-2)  # (.., N + K, d)
    classes = torch.arange(label_embeddings.shape[-2], device=labels.device)  # (K,)
    item_labels = torch.cat([labels, classes])  # (N + K,)

    # Items are both anchors and keys; the kernel leaves each out of its own positives.
    positive = item_labels[:, None] == item_labels[None, :]  # (N + K, N + K)
    return contrastive_loss(items, items, positive, temperature, exclude_self=True)


def acl_cl_loss(student_h, teacher_h, labels, teacher_label_embeddings, temperature):
    """ACL-CL, cross-layer ACL: the teacher exit guides a student (abstract; keys: our reading).

        keys sg{ h_1^M .. h_N^M, l_1^M .. l_K^M } with labels {y_1 .. y_N, 1 .. K}
        L_ACL-CL^m = mean_i  -1/|P(i)| sum_{p in P(i)} log prob(p|i)
        prob(b|i) = exp(z_i^m.z_b / tau) / sum_{b'} exp(z_i^m.z_b' / tau)      b, b': keys
        P(i):    the keys that have sample i's label; its own teacher vector is one of them

    student_h (.., N, d) of the exits m; teacher_h (N, d) and teacher_label_embeddings (K, d) of
    the deepest exit M; labels (N,) int64 in 0..K-1.  Returns (..), one loss for each student.
    sg, stop-gradient: no gradient enters the keys.  It does flow into the layers below exit m,
    which the teacher shares.  Raises ValueError.
    """
    teacher = {"teacher_h": teacher_h, "teacher_label_embeddings": teacher_label_embeddings}
    check(temperature, labels, student_h=student_h, **teacher)

    keys = torch.cat([teacher_h.float(), teacher_label_embeddings.float()])  # (N + K, d)
    classes = torch.arange(len(teacher_label_embeddings), device=labels.device)  # (K,)
    key_labels = torch.cat([labels, classes])  # (N + K,)

    # No exclude_self: key i is not the same vector as anchor i, but one to move towards.
    positive = labels[:, None] == key_labels[None, :]  # (N, N + K)
    return contrastive_loss(student_h, keys.detach(), positive, temperature)


def kd_loss(student_logits, teacher_logits, temperature):
    """Knowledge distillation, the multi-exit baseline (Hinton et al., arXiv 1503.02531).

        L_KD = tau^2 mean_i KL( softmax(sg[t_i] / tau) || softmax(s_i / tau) )

    student_logits (.., N, K), teacher_logits (N, K); returns (..), one loss for each student.  The
    teacher is detached.  tau^2 keeps the gradient's size independent of tau.  Raises ValueError.
    """
    check(temperature, student_logits=student_logits, teacher_logits=teacher_logits)
    s = student_logits.float()  # (.., N, K)
    t = teacher_logits.detach().float()  # (N, K)

    # Both as log-probabilities; otherwise a probability that rounds to 0 would give log 0.
    log_student = F.log_softmax(s / temperature, dim=-1)
    log_teacher = F.log_softmax(t / temperature, dim=-1)
    kl = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1)  # (.., N)
    return temperature**2 * kl.mean(dim=-1)


# --------------------------------------------------------------------------- wrong arguments


def check(temperature, labels=None, **matrices):
    """Raise a ValueError that names the wrong argument of a loss.

    matrices, by name: floating point (.., N, d).  Label embeddings, recognised by their name,
    have K rows instead of N.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a number above 0, not {temperature}")
    first = next(iter(matrices.values()))  # it determines N and d
    for name, x in matrices.items():
        is_matrix = isinstance(x, torch.Tensor) and x.is_floating_point() and x.dim() >= 2
        if not is_matrix or 0 in x.shape:
            raise ValueError(f"{name} must be floating point (.., N, d), not {shown(x)}")
        sizes = 1 if name.endswith("label_embeddings") else 2
        if x.shape[-sizes:] != first.shape[-sizes:]:
            raise ValueError(f"{name}, {shown(x)}, does not fit to {shown(first)} beside it")

    # One class number for each sample.
    if labels is None:
        return
    N = first.shape[-2]
    is_tensor = isinstance(labels, torch.Tensor)
    if not is_tensor or labels.dtype != torch.int64 or labels.shape != (N,):
        raise ValueError(f"labels must be int64 ({N},), not {shown(labels)}")

    # Labels lie within 0..K-1.  On a GPU this is not looked at, since it means waiting for it.
    for name, x in matrices.items():
        if name.endswith("label_embeddings") and labels.device.type == "cpu":
            low, high = labels.min().item(), labels.max().item()
            if low < 0 or high >= x.shape[-2]:
                raise ValueError(f"labels must be 0..{x.shape[-2] - 1}; found {low}..{high}")


def shown(x):
    """A wrong argument in a message: 'torch.int64 (8,)', or its class."""
    is_tensor = isinstance(x, torch.Tensor)
    return f"{x.dtype} {tuple(x.shape)}" if is_tensor else type(x).__name__
