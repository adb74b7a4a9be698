"""What every command does alike: an expected error becomes one line instead of a traceback.

Exit status: 0 done; 1 stopped by the machine or by the numbers (a full disk, memory, NaN); 2 bad
input; 130 Ctrl-C.  An error that nobody expected keeps its traceback.
"""

import argparse
import contextlib
import difflib
import os
import re
import sys
from pathlib import Path


class InputError(Exception):
    """The user's input is wrong.  The text is one line that says what is wrong and what to do."""


@contextlib.contextmanager
def reading(path):
    """Whatever a reader raises inside becomes an InputError whose line names the file."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except Exception as error:  # the libraries' errors for a torn file have many classes
        advice = "; save it as UTF-8" if isinstance(error, UnicodeError) else ""
        raise InputError(f"cannot read {path}: {reason(error)}{advice}") from error


def reason(error):
    """A library's error in one line: its class, and the first 200 letters of its text."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextlib.contextmanager
def one_line_errors(program):
    """Around a command's work: what is expected to go wrong ends the program with one line."""
    try:
        yield
        return
    except InputError as error:
        line, status = error, 2
    except KeyboardInterrupt:
        line, status = "interrupted", 130
    except BrokenPipeError:  # the reader has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (FloatingPointError, OSError) as error:  # NaN; a full disk, a folder without rights
        line, status = error, 1
    except (MemoryError, RuntimeError) as error:
        # torch has a class of its own for a GPU's memory; on a CPU only the text tells.
        if not re.search("MemoryError|out of memory|allocate memory", reason(error)):
            raise
        line = f"out of memory ({reason(error)}); use a smaller --batch-size or --max-length"
        status = 1
    print(f"{program}: {' '.join(str(line).split())}", file=sys.stderr)
    sys.exit(status)


class Parser(argparse.ArgumentParser):
    """argparse, but one line for a wrong option, and the description as it is written."""

    def __init__(self, *arguments, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, allow_abbrev=False, **options)

    def error(self, message):
        # Under torchrun every process reads the same options, and the first one speaks.
        is_first = os.environ.get("RANK", "0") == "0"
        line = f"{self.prog}: {message}{self.hint(message)}; --help shows all options\n"
        self.exit(2, line if is_first else None)

    def hint(self, message):
        """The option that an unknown one begins, or whose help names it (--tau), or is similar."""
        unknown = re.search("unrecognized arguments: (--[a-z-]+)", message)
        if unknown is None:
            return ""
        options = self._option_string_actions
        similar = [name for name, action in options.items() if name.startswith(unknown[1])
                   or unknown[1][2:] in (action.help or "").split()]
        similar += difflib.get_close_matches(unknown[1], options, n=1, cutoff=0.75)
        return f", did you mean {similar[0]}?" if similar else ""


def is_here(option, name):
    """Whether `name`, the value of --data or --model, is a path; otherwise it is a hub id.

    Raises InputError for what can only be a path and does not exist: nobody asks the hub for it.
    """
    path = Path(name)
    if path.exists():
        return True
    looks_local = path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2
    if looks_local or path.parent.name and path.parent.exists():
        raise InputError(f"{option} {name}: there is no such file or folder")
    return False
