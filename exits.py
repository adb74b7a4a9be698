"""BERT with an exit after chosen layers, and early exit that drops finished samples.

    tokens -> embeddings -> layer 1 -> layer 2 -> ... -> layer 12
                              |          |                 |
                            h^1        h^2               h^12      representation: the mean of
                              |          |                 |       tokens, or the pooler's [CLS]
                              |          |                 |
                         classifier 1 classifier 2 ... classifier 12     its weight's rows: the
                              |          |                 |             label embeddings l_k^m
                         leave here?   here?            always

Any encoder that AutoModel loads can be trained and evaluated at every layer.  Early exit itself
drops samples between layers and needs BERT-like layers.  A model with one exit is the same class.
Architecture: second-hand (PCEE-BERT's code by one of the paper's authors).
"""

import torch
import torch.nn.functional as F
from torch import nn

import glue
from tools import encoders


# ------------------------------------------------------------------------------ the model


class MultiExitBert(nn.Module):
    """An encoder with a classifier on the representation of each chosen layer.

    encoder: what AutoModel returns.  exit_layers: numbers from 1, "all" or "last"; the last layer
    must be among them, since it answers all that are left.  pooling: "mean" of the tokens, or
    "cls", the encoder's pooler (dense + tanh on the first token).  Raises InputError or ValueError.
    """

    def __init__(self, encoder, num_labels, exit_layers="all", pooling="mean"):
        super().__init__()
        if pooling not in ("cls", "mean"):
            raise ValueError(f"pooling must be cls or mean, not {pooling!r}")
        if num_labels < 2:
            raise ValueError(f"num_labels must be 2 classes or more, not {num_labels}")
        self.encoder = encoder
        self.pooling = pooling
        self.num_layers = encoder.config.num_hidden_layers
        self.exit_layers = encoders.parse_exits(exit_layers, self.num_layers)

        # Mean pooling does not need the pooler of [CLS], which would only cost time.
        if pooling == "mean":
            encoder.pooler = None
        else:
            encoders.check_pooler(encoder)

        # Initialised like BERT's linear layers, once all of them are made: in another order they
        # would get other random numbers.
        self.dropout = nn.Dropout(encoders.dropout_of(encoder.config))
        self.classifiers = nn.ModuleList()
        for _ in self.exit_layers:
            self.classifiers.append(nn.Linear(encoder.config.hidden_size, num_labels))
        for classifier in self.classifiers:
            nn.init.normal_(classifier.weight, std=0.02)
            nn.init.zeros_(classifier.bias)

    def forward(self, batch):
        """{input_ids, attention_mask, token_type_ids} (N, L) -> h (M, N, d), logits (M, N, K).

        h is what the contrastive losses see; the classifiers receive h with dropout.
        """
        h = self.encode(batch)

        # logits^m = h^m W^m' + b^m, all exits in one product.
        W = self.label_embeddings()  # (M, K, d)
        b = torch.stack([classifier.bias for classifier in self.classifiers])  # (M, K)
        logits = torch.baddbmm(b[:, None], self.dropout(h), W.mT)  # (M, N, K)
        return h, logits

    def label_embeddings(self):
        """(M, K, d): row k of [m] is the label embedding of class k at exit m."""
        return torch.stack([classifier.weight for classifier in self.classifiers])

    def encode(self, batch):
        """(N, L) tokens -> h (M, N, d), the representation at each of the M exits."""
        inputs = encoders.inputs_for(self.encoder, batch)
        outputs = self.encoder(**inputs, output_hidden_states=True)
        hidden_states = outputs.hidden_states  # of the embeddings, then of each layer: (N, L, d)
        chosen = [hidden_states[layer] for layer in self.exit_layers]
        return self.represent(chosen, token_mask(batch))

    def represent(self, hidden_states, mask):
        """Hidden states of M layers, each (N, L, d), and mask (N, L) of tokens -> h (M, N, d)."""
        if self.pooling == "mean":
            mask = mask.unsqueeze(-1).to(hidden_states[0].dtype)  # (N, L, 1)
            count = mask.sum(dim=1)  # (N, 1)
            return torch.stack([(hidden * mask).sum(dim=1) / count for hidden in hidden_states])

        # All exits share the encoder's one pooler.  Autocast is off: it would round h to bf16's
        # 8 bits, too coarse for the losses.
        first = torch.stack([hidden[:, 0] for hidden in hidden_states])  # (M, N, d): of [CLS]
        with torch.autocast(first.device.type, enabled=False):
            return encoders.pool(self.encoder, first)

    def head_parameters(self):
        """The classifiers, and the pooler where it is new.

        They are not pretrained, so they may need a learning rate of their own.
        """
        heads = list(self.classifiers.parameters())
        if self.pooling == "cls" and getattr(self.encoder, "pooler_is_new", False):
            heads += self.encoder.pooler.parameters()
        return heads


def token_mask(batch):
    """(N, L), 1 where there is a token and 0 where there is padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask


# ------------------------------------------------------------------------------ the rules
#
# A rule says who may leave now.  It sees the logits (m, n, K) of the m exits passed so far, this
# one the last of them, and of the n samples still inside, and returns (n,) bool.
# functools.partial(entropy, threshold=0.3) fills in its setting.  It needs logits, not
# probabilities, and exits come first, then samples; nothing can check that: (n, m, K) by mistake
# gives a wrong answer, not an error.


def entropy(logits, threshold):
    """Leave at the first exit with H(p) / log K <= threshold in 0..1.

    logits (m, n, K) -> (n,) bool.  DeeBERT (arXiv 2004.12993), normalised.
    """
    return normalised_entropy(logits[-1]) <= threshold


def confidence(logits, threshold):
    """Leave at the first exit with max p >= threshold in 0..1.  logits (m, n, K) -> (n,) bool."""
    return logits[-1].float().softmax(dim=-1).amax(dim=-1) >= threshold


def patience(logits, times):
    """Leave when the last `times` + 1 exits predict the same class, `times` >= 1.

    logits (m, n, K) -> (n,) bool.  PABEE (arXiv 2006.04152).

    >>> logits = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[3.0, 0.0]]])     # 3 exits, 1 sample
    >>> patience(logits, times=2)
    tensor([True])
    """
    predictions = logits[-times - 1:].argmax(dim=-1)  # (at most times + 1, n)
    unchanged = (predictions == predictions[-1]).all(dim=0)  # (n,)
    return unchanged & (len(logits) > times)


def pcee(logits, threshold, times):
    """Leave when H(p) / log K <= threshold for `times` >= 1 exits in a row.

    logits (m, n, K) -> (n,) bool.  PCEE-BERT, second-hand.
    """
    sure = normalised_entropy(logits[-times:]) <= threshold  # (at most times, n)
    return sure.all(dim=0) & (len(logits) >= times)


def normalised_entropy(logits):
    """H(p) / log K in 0..1 of logits (..., K)."""
    # Not softmax and then log, which give NaN where two logits are 104 or more apart.
    log_p = F.log_softmax(logits.float(), dim=-1)
    H = -(log_p.exp() * log_p).sum(dim=-1)
    log_K = torch.tensor(float(logits.shape[-1]), device=H.device).log()  # in float32, as H is
    return (H / log_K).clamp(max=1.0)  # rounding may leave it a little above


def who_leaves(rule, logits):
    """A rule's answer to logits (m, n, K), checked: (n,) bool.  Raises ValueError."""
    leave = rule(logits)
    # A rule may be user-written, and an answer of another shape would broadcast silently.
    n = logits.shape[1]
    if leave.dtype != torch.bool or leave.shape != (n,):
        raise ValueError(f"a rule must return torch.bool ({n},), one for each sample; not "
                         f"{leave.dtype} {tuple(leave.shape)}")
    return leave


def exit_indices(logits, rule):
    """Which sample would leave where, from stored logits (M, R, K) of all exits.

    Returns (R,) int64: an index 0..M-1 into the exits, not a layer number.  Raises ValueError.
    """
    M, R, _ = logits.shape
    index = torch.full((R,), M - 1, device=logits.device)  # the deepest exit always answers
    for m in reversed(range(M - 1)):  # so that the shallowest exit has the last word
        leave = who_leaves(rule, logits[:m + 1])
        index = torch.where(leave, m, index)
    return index


# ----------------------------------------------------------------- early exit, evaluation


@torch.no_grad()
def early_exit(model, batch, rule):
    """Run the layers and drop the samples that leave, so that the remaining layers cost less.

    batch: dict of (N, L) tensors; rule: logits (m, n, K) -> (n,) bool, or None: no sample leaves
    early and only the deepest exit is computed, as the full model to compare with.  Returns logits
    (N, K) and exit layers (N,), from 1, in the order of the input.  Dropout is off, whatever mode
    the model is in.  Raises InputError for an encoder whose layers are not BERT's, ValueError
    for a rule that does not answer as it should.

    Example: samples 0, 1, 2 are inside and 1 leaves.  `stay` is [True, False, True]; hidden
    (3, L, d) becomes (2, L, d), and the attention mask and the logits so far must lose the same
    sample, or sample 2 would continue with sample 1's mask.
    """
    encoders.check_layers(model)
    with encoders.evaluating(model):
        hidden, attention_mask = encoders.embed(model.encoder, batch)  # (N, L, d)
        mask = token_mask(batch)  # (N, L) for pooling; attention_mask is for the layers
        inside = torch.arange(len(hidden), device=hidden.device)  # (n,) samples still inside
        K = model.classifiers[0].out_features
        answer = torch.empty(len(hidden), K, device=hidden.device)  # (N, K)
        exit_layers = torch.empty_like(inside)  # (N,)
        so_far = []  # the logits of the exits passed, each (n, K)

        for number, layer in enumerate(model.encoder.encoder.layer, start=1):
            hidden = layer(hidden, attention_mask)  # (n, L, d)
            is_last = number == model.num_layers
            if number not in model.exit_layers:
                continue
            if rule is None and not is_last:
                continue

            # This exit's logits, and who leaves with them.
            classifier = model.classifiers[model.exit_layers.index(number)]
            [h] = model.represent([hidden], mask)  # (n, d)
            so_far.append(classifier(h).float())
            if is_last:
                leave = torch.ones_like(inside, dtype=torch.bool)  # all that are left
            else:
                leave = who_leaves(rule, torch.stack(so_far))  # (n,)
            if not leave.any():
                continue
            answer[inside[leave]] = so_far[-1][leave]
            exit_layers[inside[leave]] = number

            # Whatever belongs to a leaving sample is dropped with it.
            stay = ~leave
            if not stay.any():
                break
            hidden = hidden[stay]
            mask = mask[stay]
            inside = inside[stay]
            so_far = [logits[stay] for logits in so_far]
            if attention_mask is not None:
                attention_mask = attention_mask[stay]
    return answer, exit_layers


@torch.no_grad()
def all_exits(model, split, tokenizer, device, keep_h=0, batch_size=64):
    """One pass over a tokenised split of R samples, float32 on the CPU, in the split's order.

    Returns h (M, min(keep_h, R), d) of its first samples (all of QQP's test would take 14 GB)
    and logits (M, R, K) of all.
    """
    # Samples of similar length together: hardly any padding.
    lengths = glue.row_lengths(split)
    batches = lengths.argsort(stable=True).split(batch_size)
    M, R = len(model.exit_layers), len(split)
    K = model.classifiers[0].out_features

    # A batch's rows go to its samples' places in the split.
    kept = torch.empty(M, min(keep_h, R), model.encoder.config.hidden_size)
    logits = torch.empty(M, R, K)
    with encoders.evaluating(model):
        for numbers, batch in zip(batches, glue.loader(split, batches, tokenizer)):
            batch.pop("label")
            h, logits_of_batch = model(batch.to(device))
            logits[:, numbers] = logits_of_batch.float().cpu()
            is_kept = numbers < keep_h
            kept[:, numbers[is_kept]] = h.float().cpu()[:, is_kept]
    return kept, logits
