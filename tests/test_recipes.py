"""docs/recipes.md: the code it shows is run here, and compared with sums by hand."""

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertForSequenceClassification, default_data_collator

import acl
import grad_surgery
from tests.small import small_encoder

TEXT = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")


def recipe(title, **names):
    """Run the block of code that starts with the comment `# title`; returns what it defines.

    names: what it uses beside its imports.
    """
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    [code] = [block for block in blocks if block.startswith(f"# {title}")]
    names |= {"F": F, "acl_embed_loss": acl.acl_embed_loss, "acl_grad": grad_surgery.acl_grad}
    exec(code, names)
    return names


class SmallCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.classifier = nn.Linear(4, 3)

    def forward(self, images):
        features = self.convolution(images).relu().mean(dim=(2, 3))  # (N, 4)
        return features, self.classifier(features)


def descend(parameters, pairs, lr):
    """One step of SGD by hand, along the sum of what the rule gives for each (L_CE, L_ACL)."""
    total = [torch.zeros_like(p) for p in parameters]
    options = {"retain_graph": True, "materialize_grads": True}
    for ce_loss, acl_loss in pairs:
        g_ce = torch.autograd.grad(ce_loss / 2, parameters, **options)
        g_acl = torch.autograd.grad(acl_loss / 2, parameters, **options)
        product = sum((a * b).sum() for a, b in zip(g_ce, g_acl))
        for sum_so_far, a, b in zip(total, g_ce, g_acl):
            sum_so_far += a + 0.1 * b * (product >= 0)
    with torch.no_grad():
        for p, g in zip(parameters, total):
            p -= lr * g


def test_a_cnn_with_accumulation_takes_the_steps_of_the_summed_gradients():
    torch.manual_seed(0)
    cnn = SmallCNN()
    twin = copy.deepcopy(cnn)
    loader = [(torch.randn(6, 1, 5, 5), torch.randint(3, (6,))) for _ in range(4)]
    optimizer = torch.optim.SGD(cnn.parameters(), lr=0.1)
    recipe("a CNN's loop", loader=loader, cnn=cnn, optimizer=optimizer)

    for first in (0, 2):
        pairs = []
        for images, labels in loader[first:first + 2]:
            features, logits = twin(images)
            acl_loss = acl.acl_embed_loss(features, labels, twin.classifier.weight, 0.5)
            pairs.append((F.cross_entropy(logits, labels), acl_loss))
        descend(list(twin.parameters()), pairs, lr=0.1)
    torch.testing.assert_close(cnn.state_dict(), twin.state_dict(), atol=1e-6, rtol=1e-5)


def test_the_trainer_sums_two_micro_batches(tmp_path):
    """One step of SGD at rate 1: the weights move by the two micro-batches' summed gradients."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model = BertForSequenceClassification(small_encoder(num_layers=2, dropout=0.0).config)
    twin = copy.deepcopy(model)
    rows = []
    for i in range(8):
        rows.append({"input_ids": torch.randint(5, 40, (6,)), "labels": torch.tensor(i % 2)})
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=1,
        max_grad_norm=0.0,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    trainer = recipe("the Trainer", Trainer=Trainer)["ACLTrainer"](
        model, arguments, train_dataset=rows, optimizers=(optimizer, constant)
    )
    pairs = []

    def losses_of_twin(rows):
        """A collator; on the way the twin computes its losses of the same batch."""
        batch = default_data_collator(rows)
        outputs = twin(**batch, output_hidden_states=True)
        h = twin.bert.pooler(outputs.hidden_states[-1])
        acl_loss = acl.acl_embed_loss(h, batch["labels"], twin.classifier.weight, 0.5)
        pairs.append((outputs.loss, acl_loss))
        return batch

    trainer.data_collator = losses_of_twin
    trainer.train()
    assert len(pairs) == 2
    descend(list(twin.parameters()), pairs, lr=1.0)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_common_factor_changes_neither_decision_nor_cosine(scale):
    """GradScaler's: the gradient is the scaled one, to be divided by unscale_."""
    for sign in (1, -1):
        w = torch.zeros(2, requires_grad=True)
        cosine = grad_surgery.acl_grad(scale * w[0], sign * scale * w.sum(), [w], 1.0)
        assert cosine == pytest.approx(sign * 0.5**0.5)
        assert (w.grad / scale).tolist() == ([2, 1] if sign == 1 else [1, 0])
