"""Inside Hugging Face's Trainer: its optimizer settings, schedule, clipping, logs and checkpoints."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import locallearn as ll
from user_models import Transformer, sequences

transformers = pytest.importorskip("transformers", reason="needs the package transformers")
pytest.importorskip("accelerate", reason="needs the package accelerate")

from locallearn.integrations.transformers import LocalTrainer  # noqa: E402

transformers.logging.set_verbosity_error()


def _network():
    torch.manual_seed(0)
    return ll.split(Transformer(), example=sequences(), cuts=["layers.0", "layers.1"])


def _rows():
    return [{"x": x, "labels": y} for x, y in zip(*sequences(n=16), strict=True)]


def _args(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "lr_scheduler_type": "linear",
        "logging_steps": 2,
        "save_steps": 3,
        "optim": "adamw_torch",
        "adam_epsilon": 1e-3,  # else Adam blows rounding up where a gradient is zero
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return transformers.TrainingArguments(**settings | changes)


def _trainer(folder, **changes):
    return LocalTrainer(model=_network(), args=_args(folder, **changes), train_dataset=_rows())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    trainer = _trainer(folder)
    trainer.train()
    return trainer, folder


def _by_hand(batches):
    """The same training without the Trainer: AdamW a module, linear schedule, clipping by module."""
    network = _network()
    network.clip_norm = 0.5

    def adamw(parameters):
        groups = {}
        for p in parameters:
            groups.setdefault(0.1 if id(p) in matrices else 0.0, []).append(p)
        settings = [{"params": p, "weight_decay": rate} for rate, p in groups.items()]
        return torch.optim.AdamW(settings, lr=1e-2, eps=1e-3)

    plain = ("bias", "norm1.weight", "norm2.weight")
    matrices = {id(p) for name, p in network.named_parameters() if not name.endswith(plain)}
    network.set_optimizers(adamw)
    for step, batch in enumerate(batches):
        for optimizer in network.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 - step / 6)
        network.step(batch)
    return network


def test_training_equals_a_loop_with_the_same_settings(trained, tmp_path):
    seen = []
    trainer = _trainer(tmp_path, save_strategy="no")
    step = trainer.network.step
    trainer.network.step = lambda batch: (seen.append(batch), step(batch))[1]
    trainer.train()
    plain = _by_hand(seen)
    for network in (trainer.network, trained[0].network):
        for (name, a), b in zip(network.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)


def test_losses_of_every_module_are_logged(trained):
    logs = [line for line in trained[0].state.log_history if "loss" in line]
    assert len(logs) == 3
    assert all({"loss/1", "loss/2", "loss/3", "learning_rate"} <= set(line) for line in logs)


def test_the_gradients_norm_is_logged_as_before_clipping(tmp_path):
    """Of all stages together; clipped ones would all have the norm that was asked for."""

    def first(norm):
        trainer = _trainer(tmp_path, max_grad_norm=norm, max_steps=1, logging_steps=1, save_strategy="no")
        trainer.train()
        return trainer.state.log_history[0]["grad_norm"]

    assert first(1e-3) == pytest.approx(first(0.0), rel=1e-6)
    assert first(1e-3) > 1


def test_a_checkpoint_continues(trained, tmp_path):
    trainer = _trainer(tmp_path)
    trainer.train(resume_from_checkpoint=str(trained[1] / "checkpoint-3"))
    assert trainer.state.global_step == 6
    for a, b in zip(trainer.network.parameters(), trained[0].network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_evaluation_is_of_the_models_own_loss(trained):
    trainer, _ = trained
    x, y = sequences(n=16)
    network = trainer.network.eval()
    expected = network(x, labels=y)["loss"].item()
    assert trainer.evaluate(_rows())["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_accumulated_batches_are_as_one_larger_batch(tmp_path):
    def trained(folder, **changes):
        rows = _rows()[:12]
        args = _args(tmp_path / folder, max_steps=4, save_strategy="no", logging_steps=1, **changes)
        trainer = LocalTrainer(model=_network(), args=args, train_dataset=rows)
        trainer.train()
        return trainer

    one = trained("one", per_device_train_batch_size=8)
    several = trained("several", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert several.state.global_step == 4
    for a, b in zip(several.network.parameters(), one.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    losses = [[line["loss"] for line in each.state.log_history if "loss" in line] for each in (one, several)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_the_users_optimizer_and_schedule_are_what_trains(tmp_path):
    networks = []
    for rates in ((1.0, 1.0, 1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0)):
        network = _network()
        sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step, rates=rates: (*rates, 0.0)[step])
        args = _args(tmp_path, max_steps=len(rates), save_strategy="no")
        trainer = LocalTrainer(model=network, args=args, train_dataset=_rows(), optimizers=(sgd, schedule))
        trainer.train()
        networks.append(network)
        assert [type(each) for each in network.optimizers] == [torch.optim.SGD] * 3
        assert all(group["nesterov"] for each in network.optimizers for group in each.param_groups)
        logs = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
        assert logs[0] == pytest.approx(0.1)
    before = _network()
    assert not torch.equal(before.model.head.weight, networks[0].model.head.weight)
    for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)  # nothing moved any more with a rate of 0


def test_a_users_optimizer_with_a_rate_of_zero_moves_nothing(tmp_path):
    network = _network()
    still = torch.optim.SGD(network.parameters(), lr=0.0)
    args = _args(tmp_path, save_strategy="no")
    LocalTrainer(model=network, args=args, train_dataset=_rows(), optimizers=(still, None)).train()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), _network().parameters(), strict=True))


def test_a_run_with_the_users_optimizer_continues(tmp_path):
    def trainer(network):
        adam = torch.optim.AdamW(network.parameters(), lr=1e-2, eps=1e-3)
        schedule = torch.optim.lr_scheduler.StepLR(adam, 3, 0.5)
        return LocalTrainer(model=network, args=_args(tmp_path), train_dataset=_rows(), optimizers=(adam, schedule))

    whole = trainer(_network())
    whole.train()
    later = trainer(_network())
    later.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for a, b in zip(later.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert later.network.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 * 0.25)


def test_an_optimizer_that_lacks_parameters_is_refused(tmp_path):
    network = _network()
    sgd = torch.optim.SGD(network.model.parameters(), lr=0.1)  # without the heads
    trainer = LocalTrainer(model=network, args=_args(tmp_path), train_dataset=_rows(), optimizers=(sgd, None))
    with pytest.raises(ll.LocalLearnError, match=r"optimizers: stages.0.objective\S* of stage 1 is missing"):
        trainer.train()


def test_the_optimizer_that_a_class_and_settings_name_is_what_trains(tmp_path):
    chosen = (torch.optim.RMSprop, {"lr": 1e-3, "alpha": 0.5})
    args = _args(tmp_path, save_strategy="no", max_steps=1)
    trainer = LocalTrainer(model=_network(), args=args, train_dataset=_rows(), optimizer_cls_and_kwargs=chosen)
    trainer.train()
    assert [(type(o), o.param_groups[0]["alpha"]) for o in trainer.network.optimizers] == [
        (torch.optim.RMSprop, 0.5)
    ] * 3


class _Plain(torch.nn.Module):
    """Gives scores alone, and has convolutions whose weights are kept channels last."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 1)

    def forward(self, pixels):
        return self.last(self.first(pixels).relu().mean((2, 3)))


def test_own_losses_predictions_and_channels_last_weights_of_a_plain_model(tmp_path):
    torch.manual_seed(0)
    images, values = torch.rand(8, 3, 6, 6), torch.rand(8, 1)
    model = _Plain().to(memory_format=torch.channels_last)
    network = ll.split(
        model, cuts=["first"], example={"pixels": images, "labels": values}, objective=torch.nn.functional.l1_loss
    )
    rows = [{"pixels": x, "labels": y} for x, y in zip(images, values, strict=True)]
    args = _args(tmp_path, max_steps=3, eval_strategy="steps", eval_steps=3, load_best_model_at_end=True)
    trainer = LocalTrainer(model=network, args=args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    weights = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert torch.equal(weights["model.first.weight"], network.model.first.weight)
    scores = network.eval()(images)
    assert trainer.evaluate()["eval_loss"] == pytest.approx((scores - values).abs().mean().item(), rel=1e-5)
    found = trainer.predict(rows)
    torch.testing.assert_close(torch.tensor(found.predictions), scores.detach())
    assert found.label_ids.shape == (8, 1)
    alone = trainer.predict([{"pixels": x} for x in images])
    torch.testing.assert_close(torch.tensor(alone.predictions), scores.detach())


def test_checkpointing_switched_on_before_the_split_trains_as_without(tmp_path):
    def trained(checkpointing):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = transformers.BertConfig(vocab_size=32, num_labels=3, **sizes, **none)
        model = transformers.BertForSequenceClassification(config)
        if checkpointing:
            model.gradient_checkpointing_enable()
        ids, labels = torch.randint(5, 32, (8, 6)), torch.arange(8) % 3
        network = ll.split(model, depth=2, example={"input_ids": ids, "labels": labels})
        rows = [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]
        args = _args(tmp_path, max_steps=3, save_strategy="no")
        LocalTrainer(model=network, args=args, train_dataset=rows).train()
        return network

    for a, b in zip(trained(True).parameters(), trained(False).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "instead"),
    [
        ({"fp16": True}, "precision='fp16'"),
        ({"gradient_checkpointing": True}, r"before ll.split"),
        ({"label_smoothing_factor": 0.1}, r"objective=.*label_smoothing=0.1"),
        ({"torch_compile": True}, "leave it off"),
        ({"use_liger_kernel": True}, "before ll.split"),
        ({"neftune_noise_alpha": 5.0}, "before ll.split"),
    ],
)
def test_settings_that_would_do_something_else_are_refused(changes, instead, tmp_path):
    with pytest.raises(ll.LocalLearnError, match=f"^{next(iter(changes))}: .*{instead}"):
        _trainer(tmp_path, **changes)


def test_losses_and_schedules_that_would_be_ignored_are_refused(tmp_path):
    sgd = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(sgd)
    for name, value in (("compute_loss_func", lambda *_, **__: 0), ("optimizers", (None, schedule))):
        with pytest.raises(ll.LocalLearnError, match=f"^{name}: "):
            LocalTrainer(model=_network(), args=_args(tmp_path), **{name: value})

    class Own(LocalTrainer):
        def compute_loss(self, *args, **kwargs):
            raise AssertionError

    with pytest.raises(ll.LocalLearnError, match=r"^compute_loss: .*objective="):
        Own(model=_network(), args=_args(tmp_path))


class _Saved:
    """Like a tokenizer."""

    def save_pretrained(self, folder):
        Path(folder, "words.txt").write_text("one two")


def test_a_language_model_is_predicted_without_its_cache_and_saved_with_its_tokenizer(tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=32, n_layer=2, n_head=2, n_embd=16, n_positions=8)
    ids = torch.randint(32, (8, 6))
    network = ll.split(
        transformers.GPT2LMHeadModel(config), depth=2, example={"input_ids": ids[:4], "labels": ids[:4]}
    )
    rows, seen = [{"input_ids": x, "labels": x} for x in ids], []
    trainer = LocalTrainer(
        model=network,
        args=_args(tmp_path, per_device_eval_batch_size=4),
        eval_dataset=rows,
        processing_class=_Saved(),
        compute_metrics=lambda found: seen.append(torch.tensor(found.predictions)) or {},
    )
    trainer.evaluate()
    torch.testing.assert_close(seen[0], network.eval()(ids).logits)
    trainer.save_model(str(tmp_path / "saved"))
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(weights["model.lm_head.weight"], network.model.transformer.wte.weight)
    assert (tmp_path / "saved" / "words.txt").read_text() == "one two"
    monkeypatch.chdir(tmp_path)
    assert LocalTrainer(network).args.output_dir == "tmp_trainer"
