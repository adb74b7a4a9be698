"""Files that are whole or not there, CSV in and out, and mean±sd: one helper for each."""

import contextlib
import csv
import errno
import json
import os
import statistics

import pandas
import safetensors

from tools.command_line import is_out_of_memory, reason


def save_whole(save, content, path):
    """save(content, path), whole or not at all: written under another name, then renamed.

    The file gets the mode that the umask asks for; safetensors alone would make it 0600.
    Raises OSError where it cannot be written.
    """
    new = unfinished(path)
    with errors_that_name(path):
        try:
            save(content, new)
            apply_umask(new)
            new.replace(path)
        except Exception:
            # A disk that is full needs the room of what was not finished.
            with contextlib.suppress(OSError):
                new.unlink()
            raise


def unfinished(path):
    """Where a file is until it is whole; after a kill it may stay."""
    return path.with_name(path.name + ".new")


@contextlib.contextmanager
def errors_that_name(path):
    """OSError that says what cannot be written and why, for the libraries' errors as well, which
    have other classes for a full disk or a folder that is gone; PermissionError where that is
    the reason."""
    try:
        yield
    except OSError as error:
        may_not = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        kind = PermissionError if may_not else OSError
        raise kind(f"cannot write {path}: {error.strerror or error}") from None
    except (RuntimeError, safetensors.SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise OSError(f"cannot write {path}: {reason(error)}") from None


def apply_umask(path):
    """Give a file the mode that any new file gets."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def write_text(text, path):
    save_whole(lambda text, new: new.write_bytes(text.encode()), text, path)


def write_json(content, path):
    write_text(json.dumps(content, indent=1) + "\n", path)


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_table(rows, path, **options):
    """A list of dicts with the same keys as CSV, or with sep="\\t" as TSV, whole.

    csv.reader and pandas.read_csv(path, sep="\\t") give back every cell: what holds a separator,
    a quote or a newline is quoted.
    """
    table = pandas.DataFrame(rows)
    options = {"index": False, "lineterminator": "\n", **options}
    # A lone \r ends a row for readers, yet is not quoted by itself: then quote every text.
    if any("\r" in cell for cell in texts_of(table)):
        options["quoting"] = csv.QUOTE_NONNUMERIC
    write_text(table.to_csv(**options), path)


def texts_of(table):
    """Every cell and column name of a pandas table that is a string."""
    for name in table.columns:
        yield str(name)
        for cell in table[name]:
            if isinstance(cell, str):
                yield cell


def read_csv(path):
    """A CSV's rows as dicts of strings."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def mean_sd(values):
    """'71.3±0.8'; one value has no ±, and where one is missing (None) it is a dash."""
    values = list(values)
    if not values or None in values:
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean}±{statistics.stdev(values):.1f}"
