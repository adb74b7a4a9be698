"""What differs from one family of encoders to the next, so that exits.py need not know it."""

import contextlib
import inspect

import torch
import transformers
from torch import nn

from tools.errors import InputError, reason

try:
    from transformers.masking_utils import create_bidirectional_mask
except ImportError:
    raise SystemExit(f"transformers {transformers.__version__} is too old: "
                     "pip install -r requirements.txt") from None


def inputs_for(encoder, batch):
    """The batch without segments where the encoder knows none, or only one (RoBERTa)."""
    known = inspect.signature(encoder.forward).parameters
    segments = getattr(encoder.config, "type_vocab_size", 0)
    batch = {name: tokens for name, tokens in batch.items() if name in known}
    if segments < 2:
        batch.pop("token_type_ids", None)
    return batch


def dropout_of(config):
    """The dropout before the classifiers: the encoder's own, which each family calls otherwise."""
    for name in ("hidden_dropout_prob", "dropout", "classifier_dropout"):
        if isinstance(getattr(config, name, None), float):
            return getattr(config, name)
    return 0.1


def parse_exits(exits, num_layers):
    """"all", "last", "3,6,12" or numbers -> sorted list of layer numbers.  Raises InputError."""
    numbers = exits
    if isinstance(exits, str):
        names = {"all": range(1, num_layers + 1), "last": [num_layers]}
        numbers = names.get(exits, exits.split(","))
    try:
        layers = sorted({int(str(number)) for number in numbers})  # int(2.5) alone would be 2
    except (TypeError, ValueError):
        layers = []
    if not layers or layers[0] < 1 or layers[-1] != num_layers:
        raise InputError(f"exits must be all, last or layers from 1 to {num_layers}, with "
                         f"{num_layers} among them; not {exits}")
    return layers


# ----------------------------------------------------------------------- the pooler of [CLS]


def check_pooler(encoder):
    """InputError for an encoder without the pooler that --pooling cls needs."""
    if getattr(encoder, "pooler", None) is None:
        kind = encoder.config.model_type
        raise InputError(f"a {kind} encoder has no pooler of [CLS]: use --pooling mean")


def pool(encoder, first):
    """Dense and tanh on the first tokens (M, N, d) of M layers: (M, N, d), in the pooler's type."""
    pooler = encoder.pooler
    first = first.to(next(pooler.parameters()).dtype)
    if isinstance(pooler, nn.Linear):  # ALBERT keeps dense and tanh apart
        return encoder.pooler_activation(pooler(first))

    # The library's pooler takes (N, L, d) and looks at the first token.
    M, N, _ = first.shape
    return pooler(first.flatten(0, 1)[:, None]).unflatten(0, (M, N))


# ------------------------------------------------------------------------ walking the layers


def embed(encoder, batch):
    """What enters the first layer: hidden (N, L, d), and the attention mask of BERT's layers.

    The mask's first dimension is N; it is None where nothing is padded.
    """
    inputs = inputs_for(encoder, batch)
    attention_mask = inputs.pop("attention_mask", None)
    hidden = encoder.embeddings(**inputs)
    if hasattr(encoder, "embeddings_project"):  # ELECTRA's smaller embeddings
        hidden = encoder.embeddings_project(hidden)
    return hidden, create_bidirectional_mask(encoder.config, hidden, attention_mask)


@torch.no_grad()
def check_layers(model):
    """InputError unless walking a MultiExitBert's layers gives what the encoder's forward gives.

    Other families do something else around their layers; so may a new release of transformers.
    """
    if getattr(model, "layers_checked", False):
        return

    # Two short sentences, one of them padded, so that the mask is tried as well.
    encoder = model.encoder
    device = next(model.parameters()).device
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]], device=device)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], device=device)
    batch = {"input_ids": ids, "attention_mask": mask}
    try:
        with evaluating(model):
            h, _ = model(batch)
            hidden, attention_mask = embed(encoder, batch)
            for layer in encoder.encoder.layer:
                hidden = layer(hidden, attention_mask)
            [walked] = model.represent([hidden], mask)
        torch.testing.assert_close(walked, h[-1], atol=1e-4, rtol=0)
    except Exception as error:  # no such attribute, other arguments, a tuple, other numbers
        raise InputError(
            f"early exit cannot walk the layers of this {encoder.config.model_type} encoder as "
            f"BERT's ({reason(error)[:80]}; transformers {transformers.__version__}): use BERT, "
            "RoBERTa, ELECTRA, or counted speed-ups, which need no walk"
        ) from error
    model.layers_checked = True


@contextlib.contextmanager
def evaluating(model):
    """Evaluation mode inside; afterwards every part is as it was, a frozen encoder too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
