"""The losses of ACL (arXiv 2602.03563) as pure functions: tensors in, one scalar out.  Copy the file as it stands.

A classifier scores a representation h_i against the rows l_1 .. l_K of its weight matrix: row l_k is the *label embedding*
of class k.  Cross-entropy moves h_i towards l_{y_i}.  Supervised contrastive learning (SCL) moves samples of one class
towards each other, wherever the rows are, and so the two can pull h_i in different directions.  ACL-Embed makes the rows
take part: they are K more samples, row k labelled k.  ACL-CL lets the deepest exit of a multi-exit BERT be the target.

The three contrastive losses are one formula with different keys.  For anchors a and keys b, each with a label, z = x / ||x||:

    L = mean over anchors a with a positive of  -1/|P(a)| sum_{p in P(a)} log [ exp(z_a.z_p / tau) / sum_b exp(z_a.z_b / tau) ]

    P(a) = {keys with the label of a}; an item is never its own key.          (SupCon's L_out, arXiv 2004.11362)

              anchors                     keys                                    source
    SCL       h_1 .. h_N                  h_1 .. h_N                              arXiv 2011.01403
    ACL-Embed h_1 .. h_N, l_1 .. l_K      h_1 .. h_N, l_1 .. l_K                  the paper (abstract, second-hand details)
    ACL-CL    student's h_1 .. h_N        teacher's h_1 .. h_N, l_1 .. l_K        the paper (abstract); the keys: our reading

Letters: N samples, K classes, d hidden size, A anchors, B keys; formulas count from 1, indices from 0.  Losses are in nats,
float32 whatever autocast says; they raise ValueError naming what is wrong with an argument.
"""

import torch
import torch.nn.functional as F


def scl_loss(h, labels, temperature):
    """Supervised contrastive loss over a batch (Gunel et al., arXiv 2011.01403), the paper's baseline.

        L_SCL = mean_i -1/|P(i)| sum_{p in P(i)} log [ exp(z_i.z_p/tau) / sum_{b != i} exp(z_i.z_b/tau) ]

    h (N, d) floating point; labels (N,) int64; temperature tau > 0.  Returns a float32 scalar.  Samples whose class is alone
    in the batch are no anchors; if none has a positive (a batch of one, say) the loss is 0, with a graph, not NaN.
    """
    _check(temperature, labels, h=h)
    return contrastive_loss(h, h, same_class(labels, labels), temperature, same_items=True)


def acl_embed_loss(h, labels, label_embeddings, temperature):
    """ACL-Embed: SCL over the N samples and the K label embeddings together (paper, ACL-Embed; details second-hand).

        items x = {h_1 .. h_N, l_1 .. l_K}, labels {y_1 .. y_N, 1 .. K}, then L_SCL over the N + K items

    h (N, d); labels (N,) int64 in 0..K-1; label_embeddings (K, d), the classifier's weight rows, attached: gradient shall flow
    into them.  Every sample has a positive, its own label's row, so a batch of one is fine.  A row is an anchor as well.

    Example: labels [0, 0], K = 3.  The items' labels are [0, 0, 0, 1, 2]: rows 1 and 2 have no positive, so they are no
    anchors (nothing to move towards), but stay in every denominator: the samples are pushed away from them.

    >>> h, rows = torch.tensor([[5.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])   # on its own row, the other opposite
    >>> acl_embed_loss(h, torch.tensor([0]), rows, temperature=1.0)                     # log(1 + e^-2)
    tensor(0.1269)

    Example: what detaching the rows changes.  The sample stands at right angles to both rows.

    >>> rows = torch.tensor([[0.0, 1.0], [0.0, -1.0]], requires_grad=True)
    >>> acl_embed_loss(h, torch.tensor([0]), rows, temperature=1.0).backward()
    >>> -rows.grad[:, 0]                  # its own row steps towards the sample, the other away; detached, neither moves
    tensor([ 0.3845, -0.2500])
    """
    _check(temperature, labels, label_embeddings, h=h)
    items, item_labels = with_label_embeddings(h, labels, label_embeddings)                # (N + K, d), (N + K,)
    return contrastive_loss(items, items, same_class(item_labels, item_labels), temperature, same_items=True)


def acl_cl_loss(student_h, teacher_h, labels, teacher_label_embeddings, temperature):
    """ACL-CL, cross-layer ACL: a student exit's samples are anchors, the teacher exit's items are the keys (our reading).

        keys T = {sg[h_1^M] .. sg[h_N^M], sg[l_1^M] .. sg[l_K^M]}, labels {y_1 .. y_N, 1 .. K}, sg = stop-gradient
        L_ACL-CL^m = mean_i -1/|P(i)| sum_{t in P(i)} log [ exp(z_i^m.t/tau) / sum_{b in T} exp(z_i^m.b/tau) ]

    student_h (N, d) of exit m; teacher_h (N, d) of the deepest exit M; labels (N,) int64 in 0..K-1;
    teacher_label_embeddings (K, d).  The sample's own teacher vector is a positive.  Nothing flows into the teacher: both
    of its tensors are detached here (acl_grad_features relies on it).  To change what guides the students, change the keys
    below, or who of them is positive (results/variants.py does both); another teacher: train.compute_losses.
    """
    _check(temperature, labels, teacher_label_embeddings, student_h=student_h, teacher_h=teacher_h)
    keys, key_labels = with_label_embeddings(teacher_h.detach(), labels, teacher_label_embeddings.detach())   # (N + K, d)
    return contrastive_loss(student_h, keys, same_class(labels, key_labels), temperature, same_items=False)


def kd_loss(student_logits, teacher_logits, temperature):
    """Knowledge distillation, the multi-exit baseline (Hinton et al., arXiv 1503.02531).

        L_KD = tau^2 mean_i KL( softmax(sg[t_i] / tau) || softmax(s_i / tau) )

    student_logits, teacher_logits (N, K); the teacher is detached.  tau^2 keeps the gradient's size independent of tau.
    """
    _check(temperature, labels=None)
    if student_logits.shape != teacher_logits.shape or student_logits.dim() != 2:
        raise ValueError(f"student_logits, teacher_logits must be (N, K), not {student_logits.shape}, {teacher_logits.shape}")
    log_student = F.log_softmax(student_logits.float() / temperature, dim=-1)               # (N, K)
    log_teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)      # (N, K)
    return temperature**2 * F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")


def geometry(h, labels, label_embeddings):
    """Three numbers that say whether samples and label embeddings are aligned; no gradient.  z = x / ||x||.

        label_cosine = mean_k cos(l_k, mean of h_i with y_i = k)     1: each row points where its class lies
        alignment    = mean over pairs of one class  ||z_i - z_j||^2          0: each class is one point
        uniformity   = log mean over all pairs  exp(-2 ||z_i - z_j||^2)       0: all one point; less: spread out

    h (N, d); labels (N,) int64; label_embeddings (K, d).  NaN where a class or a pair is missing.
    Alignment and uniformity: Wang and Isola, arXiv 2005.10242, with "same class" for their positive pairs.
    """
    z = _unit(h)
    distance = (2 - 2 * z @ z.T).clamp(min=0)                                               # (N, N) ||z_i - z_j||^2
    pairs = torch.ones_like(distance, dtype=torch.bool).triu(diagonal=1)                    # (N, N) each pair once
    same = pairs & (labels[:, None] == labels[None, :])                                     # (N, N)
    means = torch.stack([h[labels == k].float().mean(dim=0) for k in range(len(label_embeddings))])   # (K, d)
    return {"label_cosine": F.cosine_similarity(means, label_embeddings.float()).mean().item(),
            "alignment": distance[same].mean().item(), "uniformity": (-2 * distance[pairs]).exp().mean().log().item()}


def with_label_embeddings(h, labels, label_embeddings):
    """(N, d) samples and (K, d) rows -> (N + K, d) items and their (N + K,) labels: row k is a sample of class k."""
    row_labels = torch.arange(len(label_embeddings), device=labels.device)                  # (K,)
    return torch.cat([h.float(), label_embeddings.float()]), torch.cat([labels, row_labels])


def same_class(anchor_labels, key_labels):
    """(A,) and (B,) labels -> (A, B) bool: which keys are positives of which anchors."""
    return anchor_labels[:, None] == key_labels[None, :]


def contrastive_loss(anchors, keys, positive, temperature, same_items):
    """The formula at the top.  anchors (A, d), keys (B, d), positive (A, B) bool; same_items: keys = anchors, without a = b."""
    # Under autocast the product below would run in bf16, whose 8 bits are too coarse for exp(cosine / 0.01).
    with torch.autocast(anchors.device.type, enabled=False):
        similarity = _unit(anchors) @ _unit(keys).T / temperature                           # (A, B)
    if same_items:
        itself = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)           # (A, A)
        positive = positive & ~itself
        # The lowest number, not -inf: in a batch of one it is all there is, and its own log-probability must not be NaN.
        similarity = similarity.masked_fill(itself, torch.finfo(similarity.dtype).min)
    log_probability = similarity - similarity.logsumexp(dim=1, keepdim=True)                # (A, B)
    positives = positive.sum(dim=1)                                                         # (A,) |P(a)|
    per_anchor = -log_probability.masked_fill(~positive, 0).sum(dim=1) / positives.clamp(min=1)   # (A,)
    # Anchors without a positive have per_anchor = 0 and do not count; without any anchor 0 / 1 = 0 keeps its graph.
    return per_anchor.sum() / (positives > 0).sum().clamp(min=1)


def _unit(x):
    """Rows of x (A, d) at length 1, float32.  A zero row stays 0 with gradient 0; F.normalize's eps would make that 1e12."""
    length = x.float().norm(dim=-1, keepdim=True)                                           # (A, 1)
    return x.float() / length.masked_fill(length == 0, float("inf"))


def _check(temperature, labels, label_embeddings=None, **representations):
    """Raise ValueError naming what is wrong.  representations: name=tensor, each with the same labels."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a number above 0, not {temperature}")
    for name, h in representations.items():
        if h.dim() != 2 or not h.is_floating_point() or len(h) == 0:
            raise ValueError(f"{name} must be a floating-point tensor (N, d) with N > 0, not {h.dtype} {tuple(h.shape)}")
        if labels.shape != h.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64 ({len(h)},) like {name}, not {labels.dtype} {tuple(labels.shape)}")
        if label_embeddings is not None and (label_embeddings.dim() != 2 or label_embeddings.shape[1] != h.shape[1]
                                             or not label_embeddings.is_floating_point()):
            raise ValueError(f"label_embeddings must be a floating-point tensor (K, {h.shape[1]}) like {name}, not "
                             f"{label_embeddings.dtype} {tuple(label_embeddings.shape)}")
    # Not on a GPU, where looking means waiting for it; cross-entropy asserts the same there.
    if label_embeddings is not None and not labels.is_cuda and (labels.min() < 0 or labels.max() >= len(label_embeddings)):
        raise ValueError(f"labels must lie in 0..{len(label_embeddings) - 1}, the rows of label_embeddings; found "
                         f"{labels.min().item()}..{labels.max().item()}")
