"""BERT with an exit after chosen layers, and early exit that drops finished rows.  A model with one exit is the same class.

    tokens -> embeddings -> layer 1 -> layer 2 -> ... -> layer 12
                              |          |                 |
                            h^1        h^2               h^12       representation: shared pooler of [CLS], or mean of tokens
                              |          |                 |
                         classifier 1 classifier 2 ... classifier 12     dropout, then an own linear layer; rows of its
                              |          |                 |             weight are the label embeddings l_1^m .. l_K^m
                         leave here?   here?            always

Architecture second-hand (PCEE-BERT's code by one of the paper's authors); at inference an input leaves at the first exit
where a rule is content.

    python exits.py runs/rte_acl-cl_1                # score against speed-up of finished runs: results/tradeoff.py
"""

import runpy
from pathlib import Path

import huggingface_hub
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import logging

from glue import InputError, demo_rows, loader, reason, row_lengths

logging.set_verbosity_error()
logging.disable_progress_bar()
huggingface_hub.utils.logging.set_verbosity_error()


class MultiExitBert(nn.Module):
    """encoder: what AutoModel returns for BERT, MiniLM, RoBERTa (its layers must be `encoder.encoder.layer`).  exits: layer
    numbers from 1, or "all" or "last"; the last layer must be among them, since it answers whatever is left.  pooling: "cls",
    the encoder's pooler (dense + tanh on the first token), or "mean" of the tokens without it.  Raises InputError."""

    def __init__(self, encoder, num_labels, exits="all", pooling="cls"):
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self.num_layers = encoder.config.num_hidden_layers
        self.exits = parse_exits(exits, self.num_layers)
        if pooling == "mean":
            encoder.pooler = None
        elif getattr(encoder, "pooler", None) is None:
            raise InputError("this encoder has no pooler: use --pooling mean, or BERT, MiniLM, RoBERTa")
        self._check_layers()
        positions = encoder.embeddings.position_embeddings
        first = 0 if positions.padding_idx is None else positions.padding_idx + 1           # RoBERTa counts them from 2
        self.max_length = positions.num_embeddings - first                    # tokens
        self.dropout = nn.Dropout(encoder.config.hidden_dropout_prob)
        self.classifiers = nn.ModuleList(nn.Linear(encoder.config.hidden_size, num_labels) for _ in self.exits)
        for classifier in self.classifiers:                                   # as BERT initialises every linear layer
            nn.init.normal_(classifier.weight, std=0.02)
            nn.init.zeros_(classifier.bias)

    def embed(self, input_ids, attention_mask=None, token_type_ids=None):
        """(N, L) tokens -> hidden (N, L, d), mask, token mask (N, L).  mask: what the layers' attention takes, its first
        dimension N (early_exit drops rows of it); None where no row is padded."""
        if self.encoder.config.type_vocab_size < 2:                           # RoBERTa knows one segment only
            token_type_ids = None
        hidden = self.encoder.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        mask = create_bidirectional_mask(self.encoder.config, hidden, attention_mask)
        return hidden, mask, torch.ones_like(input_ids) if attention_mask is None else attention_mask

    def represent(self, hidden, token_mask):
        """hidden (N, L, d) of any layer -> h (N, d): the vector the classifier receives, before dropout."""
        if self.pooling == "cls":
            # Under autocast the pooler would round h to bf16, whose 8 bits are too coarse for the losses.
            with torch.autocast(hidden.device.type, enabled=False):
                return self.encoder.pooler(hidden.to(next(self.encoder.pooler.parameters()).dtype))
        weights = token_mask.unsqueeze(-1).to(hidden.dtype)                   # (N, L, 1)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def encode(self, input_ids, attention_mask=None, token_type_ids=None):
        """(N, L) tokens -> h (M, N, d) of all M exits, from one walk through the layers."""
        hidden, mask, token_mask = self.embed(input_ids, attention_mask, token_type_ids)
        h = []
        for number, layer in enumerate(self.encoder.encoder.layer, start=1):
            hidden = layer(hidden, mask)                                      # (N, L, d): a tensor since transformers 5
            if number in self.exits:
                h.append(self.represent(hidden, token_mask))
        return torch.stack(h)                                                 # (M, N, d)

    def classify(self, h):
        """h (M, N, d) -> logits (M, N, K), each exit's by its own classifier."""
        return torch.stack([classifier(self.dropout(x)) for classifier, x in zip(self.classifiers, h)])

    def forward(self, **batch):
        """A batch of glue.loader without its label -> h (M, N, d) and logits (M, N, K) of all M exits."""
        h = self.encode(**batch)
        return h, self.classify(h)

    def head_parameters(self):
        """The parameters that start from nothing and want a learning rate of their own: classifiers, a new pooler."""
        new_pooler = getattr(self.encoder, "pooler_is_new", False) and self.pooling == "cls"
        return list(self.classifiers.parameters()) + (list(self.encoder.pooler.parameters()) if new_pooler else [])

    @torch.no_grad()
    def _check_layers(self):
        """A maintainer's tripwire: walking the layers must give the deepest exit the h that the encoder's own forward gives.
        MPNet, ELECTRA, DistilBERT do something else around them; a new transformers release may change a signature."""
        batch = {"input_ids": torch.tensor([[5, 6, 7, 8]] * 2), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}
        self.eval()
        try:
            own = self.encoder(**batch)
            h = own.pooler_output if self.pooling == "cls" else self.represent(own.last_hidden_state, batch["attention_mask"])
            torch.testing.assert_close(self.encode(**batch)[-1], h, atol=1e-4, rtol=0)
        except Exception as error:                     # no such attribute, other arguments, a tuple where a tensor was, ..
            raise InputError(f"walking the layers of this {self.encoder.config.model_type} model as BERT's fails "
                             f"({reason(error)}; transformers {transformers.__version__}); use BERT, MiniLM, RoBERTa or a kin, "
                             "or adapt exits.py: embed and the two loops of layer(hidden, mask)") from error
        self.train()


def parse_exits(exits, num_layers):
    """"all", "last", "3,6,12" or a list of numbers -> sorted list of layer numbers; InputError for what is not there."""
    if exits in ("all", "last"):
        return list(range(1, num_layers + 1)) if exits == "all" else [num_layers]
    try:
        layers = sorted({int(number) for number in (exits.split(",") if isinstance(exits, str) else exits)})
    except ValueError:
        layers = []
    if not layers or layers[0] < 1 or layers[-1] != num_layers:
        raise InputError(f"exits must be all, last or layers from 1 to {num_layers}, {num_layers} among them, not {exits!r}")
    return layers


def load_encoder(name):
    """A hub id or a folder -> (encoder, tokenizer).  Raises InputError."""
    if (Path(name).exists() or name.startswith((".", "/"))) and not (Path(name) / "config.json").is_file():
        raise InputError(f"--model {name} is no model folder: it has no config.json")
    try:
        encoder, info = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:                         # offline, no such id, a torn file: the library's errors have many names
        raise InputError(f"cannot load model {name} ({reason(error)}); offline use --model FOLDER, or --task demo") from None
    missing = sorted(info["missing_keys"])
    if any("pooler" not in key for key in missing):
        raise InputError(f"model {name} lacks weights of its own architecture, first {missing[0]}")
    if not len(tokenizer.all_special_tokens) < len(tokenizer) <= encoder.config.vocab_size:
        raise InputError(f"model {name}: its tokenizer knows {len(tokenizer)} tokens, the encoder {encoder.config.vocab_size}; "
                         "are the tokenizer's files there?")
    encoder.pooler_is_new = bool(missing)
    return encoder, tokenizer


def demo_encoder():
    """The demo task's BERT, 4 layers, untrained (everything in it is new), and a tokenizer of the demo's words alone."""
    words = sorted({word for row in demo_rows(2000) for word in f"{row['sentence1']} {row['sentence2']}".split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    encoder = BertModel(BertConfig(vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
                                   intermediate_size=256, max_position_embeddings=128, initializer_range=0.1,
                                   hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    encoder.pooler_is_new = True
    return encoder, BertTokenizer(vocab=vocabulary)


# ------------------------------------------------------------------------------------------------- rules: who may leave now
# A rule sees the logits (m, n, K) of the m exits passed so far and n inputs still inside, and returns (n,) bool: leave now.
# functools.partial(entropy, threshold=0.3) fills in its settings.

def normalised_entropy(logits):
    """H(p) / log K in 0..1 of logits (..., K).  From log_softmax: softmax and log give NaN from a gap of 104 on."""
    log_p = F.log_softmax(logits.float(), dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1) / torch.tensor(float(logits.shape[-1])).log()    # float32's log K as well


def entropy(logits, threshold):
    """Leave at the first exit with H(p)/log K <= threshold (DeeBERT, arXiv 2004.12993, normalised)."""
    return normalised_entropy(logits[-1]) <= threshold


def confidence(logits, threshold):
    """Leave at the first exit with max p >= threshold."""
    return logits[-1].float().softmax(dim=-1).amax(dim=-1) >= threshold


def patience(logits, patience):
    """Leave when `patience` >= 1 exits in a row predict again what the exit before them did (PABEE, arXiv 2006.04152).

    >>> patience(torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[3.0, 0.0]]]), patience=2)      # three exits, one row
    tensor([True])
    """
    predictions = logits[-patience - 1:].argmax(dim=-1)                       # (at most patience + 1, n)
    return (predictions == predictions[-1]).all(dim=0) & (len(logits) > patience)


def pcee(logits, threshold, patience):
    """Leave when H(p)/log K <= threshold for `patience` >= 1 exits in a row (PCEE-BERT, second-hand)."""
    return (normalised_entropy(logits[-patience:]) <= threshold).all(dim=0) & (len(logits) >= patience)


def exit_indices(logits, rule):
    """Who would leave where, from stored logits (M, R, K) of all exits: (R,) int64, index 0..M-1 into the exits."""
    index = torch.full(logits.shape[1:2], len(logits) - 1)                    # the deepest exit always answers
    for m in reversed(range(len(logits) - 1)):                                # so that the shallowest has the last word
        index[rule(logits[:m + 1])] = m
    return index


@torch.no_grad()
def early_exit(model, batch, rule):
    """Walk the layers; after each exit drop the rows that leave, so that the rest of the walk costs less.

    model: in eval mode, or dropout decides with; batch: dict of (N, L) tensors; rule: logits -> (n,) bool, or None (nobody
    leaves early and only the deepest exit is computed: the full model, to compare with).  Returns logits (N, K) and exit
    layer (N,), from 1, in the order of the input.

    Example: rows 0, 1, 2 are inside and row 1 leaves.  `stay` is [True, False, True]; hidden (3, L, d) becomes (2, L, d), and
    the mask and the exits' logits so far must lose the same row, or row 2 would go on under the mask of row 1.
    """
    hidden, mask, token_mask = model.embed(**batch)
    rows = torch.arange(len(hidden), device=hidden.device)                    # (n,) where the rows inside came from
    classifiers = dict(zip(model.exits, model.classifiers))
    answer = torch.empty(len(hidden), model.classifiers[0].out_features, device=hidden.device)   # (N, K)
    exit_layer = torch.empty_like(rows)                                       # (N,)
    so_far = []                                                               # logits of the exits passed, each (n, K)
    for number, layer in enumerate(model.encoder.encoder.layer, start=1):
        hidden = layer(hidden, mask)                                          # (n, L, d)
        is_last = number == model.num_layers                                  # where all that are left leave
        if number in classifiers and (is_last or rule is not None):
            so_far.append(classifiers[number](model.represent(hidden, token_mask)).float())
            leave = torch.ones_like(rows, dtype=torch.bool) if is_last else rule(torch.stack(so_far))    # (n,)
            if leave.any():
                answer[rows[leave]], exit_layer[rows[leave]] = so_far[-1][leave], number
                stay = ~leave
                if not stay.any():
                    break
                hidden, token_mask, rows = hidden[stay], token_mask[stay], rows[stay]
                mask = None if mask is None else mask[stay]
                so_far = [logits[stay] for logits in so_far]
    return answer, exit_layer


@torch.no_grad()
def all_exits(model, split, tokenizer, device, keep_h=0, batch_size=64):
    """One pass over a tokenised split: h (M, min(keep_h, R), d) of its first rows (all of QQP's test would take 14 GB) and
    logits (M, R, K) of all rows, float32 on the CPU, in the split's order."""
    model.eval()
    M, K = len(model.exits), model.classifiers[0].out_features
    kept, logits = torch.empty(M, min(keep_h, len(split)), model.encoder.config.hidden_size), torch.empty(M, len(split), K)
    batches = row_lengths(split).argsort(stable=True).split(batch_size)       # rows of similar length: hardly any padding
    for rows, batch in zip(batches, loader(split, batches, tokenizer)):
        batch.pop("label")
        h, logits[:, rows] = (x.cpu() for x in model(**batch.to(device)))
        kept[:, rows[rows < keep_h]] = h[:, rows < keep_h]
    return kept, logits


if __name__ == "__main__":                             # the report is no part of the model
    runpy.run_path(str(Path(__file__).parent / "results" / "tradeoff.py"), run_name="__main__")
