"""GLUE's submission files: the deepest exit's prediction for every sample of the test splits."""

import exits
from tools import processes
from tools.files import write_table
from tools.progress import waiting

# Of MNLI's two test splits, as GLUE calls the files.
SUFFIXES = {"test_matched": "-m", "test_mismatched": "-mm"}


def paths(task, splits, folder):
    """{split: file} for every test split."""
    names = [name for name in splits if name.startswith("test")]
    return {name: folder / f"{task.folder}{SUFFIXES.get(name, '')}.tsv" for name in names}


def write(model, task, splits, tokenizer, device, folder):
    """splits: tokenised.  All processes compute, since they share each batch; one writes."""
    for name, path in paths(task, splits, folder).items():
        with waiting(f"predicting {name}"):
            _, logits = exits.all_exits(model, splits[name], tokenizer, device)
        predictions = logits[-1].argmax(dim=-1).tolist()
        rows = [{"index": i, "prediction": task.labels[k]} for i, k in enumerate(predictions)]
        if processes.is_first():
            write_table(rows, path, sep="\t")
