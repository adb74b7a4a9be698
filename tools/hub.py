"""A path or a hub id, for --data and --model alike, and no long wait where there is no network."""

import os
import re
import threading
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session

from tools.command_line import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
FILE_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet",
                ".txt", ".xlsx", ".gz", ".zip", ".safetensors")


def check_path_or_hub_id(option, value):
    """True for an existing path, False for what is spelt like a hub id.  Touches no network.

    option: the option's name for the message, `--data` or `--model`.  Raises InputError for
    anything else, a link that points nowhere included.
    """
    value = str(value)
    if value and os.path.exists(value):
        return True
    if os.path.islink(value):
        raise InputError(f"{option} {value}: this link points nowhere, to {os.readlink(value)}")
    is_file_name = value.lower().endswith(FILE_ENDINGS)
    if is_file_name or not HUB_ID.fullmatch(value):
        raise InputError(f"{option} {value}: no such path (and a hub id is spelt owner/name)")
    return False


def hub_answers(seconds=3):
    """Does the hub, or the mirror that HF_ENDPOINT names, answer at all?  Any answer counts."""
    answers = []

    def ask():
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=seconds))
        except Exception:       # refused, unknown name, no route, a proxy's no: many classes
            pass

    # In a thread, because looking up a name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * seconds)
    return bool(answers)


@contextmanager
def offline_unless_the_hub_answers():
    """Inside, the libraries read their cache alone where the hub does not answer.

    Left to themselves they try each file six times with growing pauses, half a minute in all.
    The switch is what the environment variable HF_HUB_OFFLINE sets; it is put back afterwards.
    Yields True where the network is used.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_answers()
    try:
        yield not constants.HF_HUB_OFFLINE
    finally:
        constants.HF_HUB_OFFLINE = before
