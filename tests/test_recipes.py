"""docs/recipes.md: the code it shows is run here, and compared with sums by hand."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import acl
import grad_surgery

TEXT = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")


def recipe(title):
    """The block of code that starts with the comment `# title`."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    [code] = [block for block in blocks if block.startswith(f"# {title}")]
    return code


def names():
    """What the recipes import."""
    return {
        "torch": torch,
        "F": F,
        "acl_embed_loss": acl.acl_embed_loss,
        "acl_grad": grad_surgery.acl_grad,
    }


class SmallCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.classifier = nn.Linear(4, 3)

    def forward(self, images):
        features = self.convolution(images).relu().mean(dim=(2, 3))  # (N, 4)
        return features, self.classifier(features)


def by_hand(ce_loss, acl_loss, parameters, weight):
    """The rule on one long vector; a parameter that a loss does not reach has zeros there."""
    g_ce, g_acl = (
        torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        for loss in (ce_loss, acl_loss)
    )
    shared = sum((a * b).sum() for a, b in zip(g_ce, g_acl))
    return [a + weight * b * (shared >= 0) for a, b in zip(g_ce, g_acl)]


def test_a_cnn_with_accumulation_takes_the_steps_of_the_summed_gradients():
    torch.manual_seed(0)
    cnn, twin = SmallCNN(), SmallCNN()
    twin.load_state_dict(cnn.state_dict())
    loader = [(torch.randn(6, 1, 5, 5), torch.randint(3, (6,))) for _ in range(4)]
    optimizer = torch.optim.SGD(cnn.parameters(), lr=0.1)
    exec(recipe("a CNN's loop"), names() | {"loader": loader, "cnn": cnn, "optimizer": optimizer})

    parameters = list(twin.parameters())
    for first in (0, 2):
        total = [torch.zeros_like(p) for p in parameters]
        for images, labels in loader[first:first + 2]:
            features, logits = twin(images)
            ce_loss = F.cross_entropy(logits, labels) / 2
            acl_loss = acl.acl_embed_loss(features, labels, twin.classifier.weight, 0.5) / 2
            for sum_so_far, g in zip(total, by_hand(ce_loss, acl_loss, parameters, 0.1)):
                sum_so_far += g
        with torch.no_grad():
            for p, g in zip(parameters, total):
                p -= 0.1 * g
    for p, expected in zip(cnn.parameters(), parameters):
        assert torch.allclose(p, expected, atol=1e-6)


def test_the_trainer_sums_two_micro_batches(tmp_path):
    """One step of SGD at rate 1: the weights move by the two micro-batches' summed gradients."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config)
    twin = BertForSequenceClassification(config)
    twin.load_state_dict(model.state_dict())
    rows = []
    for i in range(8):
        rows.append({"input_ids": torch.randint(5, 40, (6,)), "labels": torch.tensor(i % 2)})

    there = names() | {"Trainer": Trainer}
    exec(recipe("the Trainer"), there)
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
    trainer = there["ACLTrainer"](
        model, arguments, train_dataset=rows, optimizers=(optimizer, constant)
    )
    batches = []
    trainer.data_collator = keep(trainer.data_collator, batches)
    trainer.train()

    assert len(batches) == 2
    parameters = list(twin.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for batch in batches:
        outputs = twin(**batch, output_hidden_states=True)
        h = twin.bert.pooler(outputs.hidden_states[-1])
        acl_loss = acl.acl_embed_loss(h, batch["labels"], twin.classifier.weight, 0.5)
        for sum_so_far, g in zip(total, by_hand(outputs.loss / 2, acl_loss / 2, parameters, 0.1)):
            sum_so_far += g
    for p, before, g in zip(model.parameters(), parameters, total):
        assert torch.allclose(p, before - g, atol=1e-5)


def keep(collate, batches):
    """A collator that remembers what it returned."""
    def collate_and_keep(rows):
        batches.append(collate(rows))
        return {name: tensor.clone() for name, tensor in batches[-1].items()}
    return collate_and_keep


def test_a_common_factor_changes_neither_decision_nor_cosine():
    """GradScaler's: the gradient is the scaled one, to be divided by unscale_."""
    for sign in (1, -1):
        cosines, gradients = [], []
        for scale in (1.0, 1024.0):
            w = torch.tensor([1.0, 2.0], requires_grad=True)
            ce_loss, acl_loss = scale * (w**2).sum(), scale * sign * w.sum()
            cosines.append(grad_surgery.acl_grad(ce_loss, acl_loss, [w], 0.5))
            gradients.append(w.grad / scale)
        assert cosines[0] == pytest.approx(cosines[1])
        assert torch.allclose(*gradients)
