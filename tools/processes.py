"""Several processes that share each batch, behind the model's own signature.

After `share(model)` a call of the model returns the whole batch's h and logits on every process,
though each process encoded only a part of the batch, and every gradient that reaches a parameter
is the mean over the processes.  So the training step does not see them: the losses have all N
samples, and all processes find the same gradients, take the same decision and the same step.
"""

import os

import torch
import torch.distributed as dist


def start(device):
    """Join the other processes if torchrun started this one."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


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


def from_first(function):
    """function() of the first process, for all of them: its value, or raised, its error.

    What is read from a folder that the first process writes to must be read once, or two
    processes act on two views of it.
    """
    if count() == 1:
        return function()
    answer = [None]
    if is_first():
        try:
            answer = [function()]
        except Exception as error:
            answer = [error]
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def wait():
    """Until all processes are here."""
    if count() > 1:
        dist.barrier()


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
    dist.all_reduce(gradient)
    return gradient / count()


def encode_together(encode, batch):
    """h (M, N, d) of the whole batch; of n processes each encodes every n-th sample."""
    N = len(batch["input_ids"])
    n = count()
    mine = slice(rank(), None, n)

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
    dist.all_reduce(whole)
    torch.manual_seed(seed)

    # The value of the whole, and n times the gradient of its own part: the mean over n
    # processes of the parameters' gradients is then the gradient, for the classifiers as well,
    # which every process computes whole.
    return whole + n * (own - own.detach())
