"""What differs from one family of encoders to the next, so that exits.py need not know it."""

import inspect

from tools.command_line import InputError


def inputs_for(encoder, batch):
    """The batch without segments where the encoder knows none, or only one (RoBERTa)."""
    known = inspect.signature(encoder.forward).parameters
    segments = getattr(encoder.config, "type_vocab_size", 0)
    batch = {name: tokens for name, tokens in batch.items() if name in known}
    if segments < 2:
        batch.pop("token_type_ids", None)
    return batch


def max_length_of(encoder):
    """The number of tokens that the encoder has positions for."""
    longest = encoder.config.max_position_embeddings
    embeddings = getattr(encoder, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)
    return longest if padding is None else longest - padding - 1  # RoBERTa counts from 2


def dropout_of(config):
    """The dropout before the classifiers: the encoder's own, which each family calls otherwise."""
    for name in ("hidden_dropout_prob", "dropout", "classifier_dropout"):
        if isinstance(getattr(config, name, None), float):
            return getattr(config, name)
    return 0.1


def parse_exits(exits, num_layers):
    """"all", "last", "3,6,12" or a list of numbers -> sorted list of layer numbers; InputError."""
    if exits == "all":
        return list(range(1, num_layers + 1))
    if exits == "last":
        return [num_layers]
    try:
        numbers = exits.split(",") if isinstance(exits, str) else exits
        layers = sorted({int(str(number)) for number in numbers})  # int(2.5) alone would be 2
    except (TypeError, ValueError):
        layers = []
    if not layers or layers[0] < 1 or layers[-1] != num_layers:
        allowed = f"all, last or layers from 1 to {num_layers}, {num_layers} among them"
        raise InputError(f"exits must be {allowed}, not {exits!r}")
    return layers
