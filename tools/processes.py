"""Several processes that share each batch, behind the model's own signature.

After `share(model)` a call of the model returns the whole batch's h and logits on every process,
though each encoded only a part of the batch, and every gradient that reaches a parameter is the
mean over the processes.  So the training step does not see them: the losses have all N samples,
and all processes find the same gradients, take the same decision and the same step.
"""

import contextlib
import math
import os

import torch
import torch.distributed as dist

from tools.command_line import InputError, is_out_of_memory, reason

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def start(device):
    """Join the other processes if torchrun started this one.  Raises InputError."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return
    missing = [name for name in TORCHRUN_VARIABLES if name not in os.environ]
    if missing:
        raise InputError(f"WORLD_SIZE is set, but {missing[0]} is not: start several processes "
                         "with torchrun, or unset WORLD_SIZE")
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend)
    except (ValueError, RuntimeError) as error:
        text = str(error).splitlines()[0]
        raise InputError(f"cannot join the other processes ({text}); start them with torchrun, "
                         "or unset WORLD_SIZE") from None


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first():
    """The first process alone writes and prints."""
    return rank() == 0


def say(text, file=None):
    """Print a line, once.  file: sys.stderr for remarks."""
    if is_first():
        print(text, file=file, flush=True)


def check_finite(step, ce_loss, acl_loss, norm):
    """FloatingPointError, before the optimizer spoils the weights with what is not finite.

    acl_loss alone may be: then the gate has left its gradient out, or else norm is not finite.
    """
    if not math.isfinite(ce_loss) or not math.isfinite(norm):
        error = FloatingPointError(
            f"step {step + 1}: ce_loss {ce_loss}, acl_loss {acl_loss}, gradient norm {norm}; "
            "start again with a smaller --lr or --head-lr, or --precision fp32"
        )
        error.is_told = not is_first()  # all processes have the same numbers
        raise error


def from_first(function):
    """function() of the first process, for all of them: its value, or the error it raised.

    What is read from a folder that others may write must be read once, or two processes act on
    two views of it.
    """
    if count() == 1:
        return function()
    answer = [None, None]
    if is_first():
        try:
            answer = [function(), None]
        except Exception as error:
            answer = [None, error]
    with errors_of_the_others():
        dist.broadcast_object_list(answer)
    value, error = answer
    if error is not None:
        error.is_told = not is_first()  # one line in all, not one of each process
        raise error
    return value


def on_each(function):
    """function() of every process, each its own value.  InputError of one ends all, and the
    first that failed alone says why."""
    if count() == 1:
        return function()
    value, problem = None, None
    try:
        value = function()
    except InputError as error:
        problem = error
    failed = [None] * count()
    with errors_of_the_others():
        dist.all_gather_object(failed, problem is not None)
    if not any(failed):
        return value
    error = problem or InputError("another process was given wrong input")
    error.is_told = rank() != failed.index(True)
    raise error


def wait():
    """Until all processes are here."""
    if count() > 1:
        with errors_of_the_others():
            dist.barrier()


def add_up(tensor):
    """The tensor becomes its sum over all processes."""
    with errors_of_the_others():
        dist.all_reduce(tensor)


@contextlib.contextmanager
def errors_of_the_others():
    """ConnectionError where another process has ended, which said why itself."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        text = reason(error)[:80]
        raise ConnectionError(f"another of the processes has ended ({text})") from None


def share(model):
    """Let the processes share each batch of this model from now on; one process: nothing."""
    if count() == 1:
        return model
    for p in model.parameters():
        p.register_hook(mean_over_processes)
    encode_alone = model.encode
    model.encode = lambda batch: encode_together(encode_alone, batch)
    return model


def mean_over_processes(gradient):
    """A gradient's mean over all processes, before it is compared or added up."""
    gradient = gradient.clone(memory_format=torch.contiguous_format)
    add_up(gradient)
    return gradient / count()


def encode_together(encode, batch):
    """h (M, N, d) of the whole batch; of n processes each encodes every n-th sample."""
    N = len(batch["input_ids"])
    n, mine = count(), slice(rank(), None, count())

    # Dropout: a process's own masks here, and below one mask for all in the classifiers.
    seed = torch.initial_seed()
    torch.manual_seed(seed + rank())

    # With fewer samples than processes a process has none.  It encodes sample 0, times 0, so
    # that its graph and its gradients' order are those of the others.
    has_samples = N > rank()
    if not has_samples:
        mine = slice(1)
    part = {name: tokens[mine] for name, tokens in batch.items()}
    h = encode(part) * has_samples  # (M, N / n, d)
    own = torch.zeros(len(h), N, h.shape[-1], device=h.device)  # (M, N, d)
    own[:, mine] += h
    whole = own.detach().clone()
    add_up(whole)
    torch.manual_seed(seed)

    # The value of the whole, and n times the gradient of its own part: the mean over n
    # processes of the parameters' gradients is then the gradient, for the classifiers as well,
    # which every process computes whole.
    return whole + n * (own - own.detach())
