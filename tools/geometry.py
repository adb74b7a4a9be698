"""What a run measures beside its scores: the angle of a step's gradients, an exit's geometry."""

import math
import statistics

import torch
import torch.nn.functional as F

from acl import check, unit


def telemetry(cosines, drop):
    """A step's {cosine, angle, kept} for steps.csv; None where no gate looked.

    cosines: of the two gradients; several where each exit decides for itself, then the means.
    kept: the share of the second gradient that was added; 1 where nothing is dropped.
    """
    if not cosines:
        return {"cosine": None, "angle": None, "kept": None}
    return {
        "cosine": statistics.mean(cosines),
        "angle": statistics.mean(angle(cosine) for cosine in cosines),
        "kept": statistics.mean(float(cosine >= 0 or not drop) for cosine in cosines),
    }


def angle(cosine):
    """In degrees.  Rounding can leave a cosine a little outside -1..1; NaN stays NaN."""
    if math.isnan(cosine):
        return cosine
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


@torch.no_grad()
def geometry(h, labels, label_embeddings):
    """Of one exit; z = x / ||x||.

        label_cosine = mean_k cos(l_k, mean of h_i with y_i = k)    1: each l_k points where its
                                                                       class lies
        alignment    = mean over pairs of one class  ||z_i - z_j||^2      0: a class is one point
        uniformity   = log mean over all pairs  exp(-2 ||z_i - z_j||^2)   0: all one point; less:
                                                                             spread out

    h (N, d); labels (N,) int64; label_embeddings (K, d).  NaN where a class or a pair is missing.
    Alignment and uniformity: Wang and Isola, arXiv 2005.10242, with "same class" for their
    positive pairs.  Raises ValueError.
    """
    check(1.0, labels, h=h, label_embeddings=label_embeddings)
    z = unit(h)
    distance = (2 - 2 * z @ z.T).clamp(min=0)  # (N, N) ||z_i - z_j||^2
    pairs = torch.ones_like(distance, dtype=torch.bool).triu(diagonal=1)  # (N, N) each once
    same = pairs & (labels[:, None] == labels[None, :])  # (N, N)

    classes = range(len(label_embeddings))
    means = torch.stack([h[labels == k].float().mean(dim=0) for k in classes])  # (K, d)
    cosines = F.cosine_similarity(means, label_embeddings.float())  # (K,)
    return {
        "label_cosine": cosines.mean().item(),
        "alignment": distance[same].mean().item(),
        "uniformity": (-2 * distance[pairs]).exp().mean().log().item(),
    }
