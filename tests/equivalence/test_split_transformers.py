"""Models that others wrote, from their configurations with random weights: Hugging Face's classes as they are."""

import copy

import pytest
import torch

import locallearn as ll

transformers = pytest.importorskip("transformers", reason="needs the package transformers")

transformers.logging.set_verbosity_error()


def _labels(n=8):
    return torch.arange(n) % 4


def _images():
    draw = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(8, 1, 16, 16, generator=draw), "labels": _labels()}


def _text():
    ids = torch.randint(16, (8, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def _resnet():
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic", num_labels=4
    )
    return transformers.ResNetForImageClassification(config)


def _convnext():
    config = transformers.ConvNextConfig(
        num_channels=1, patch_size=2, hidden_sizes=[8, 16], depths=[2, 2], num_stages=2, num_labels=4
    )
    return transformers.ConvNextForImageClassification(config)


def _vit(**changes):
    config = transformers.ViTConfig(
        num_channels=1,
        image_size=16,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=4,
        **changes,
    )
    return transformers.ViTForImageClassification(config)


def _gpt2():
    config = transformers.GPT2Config(
        vocab_size=16, n_positions=12, n_embd=32, n_layer=3, n_head=2, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def _swin():
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, num_channels=1, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    config.num_labels = 4
    return transformers.SwinForImageClassification(config)


def _llama():
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


CASES = {
    "resnet": (_resnet, _images, {"cuts": ["resnet.embedder", "resnet.encoder.stages.0"]}),
    "convnext": (_convnext, _images, {"cuts": ["convnext.encoder.stages.0"]}),
    "vit": (_vit, _images, {"cuts": ["vit.layers.0", "vit.layers.2"], "tokens": "class"}),
    "swin": (_swin, _images, {"depth": 3}),
    "llama": (_llama, _text, {"depth": 3, "objective": "next-token"}),
    "gpt2": (_gpt2, _text, {"depth": 3, "objective": "next-token"}),
    "gpt2-shared": (_gpt2, _text, {"depth": 3, "objective": "next-token", "head": "shared"}),
}


def adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-3)


@pytest.mark.parametrize("name", CASES)
def test_real_models_train_keep_their_names_and_merge(name):
    torch.manual_seed(0)
    make, data, options = CASES[name]
    model, batch = make(), data()
    before = copy.deepcopy(model.state_dict())
    network = ll.split(model, example=batch, optimizer=adam, **options)
    first = network.step(batch)
    for _ in range(12):
        last = network.step(batch)
    assert all(last[f"loss/{k}"] < first[f"loss/{k}"] - 0.02 for k in range(1, network.depth + 1))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    merged = network.merge()
    assert type(merged) is type(model)
    fresh = make()
    fresh.load_state_dict(merged.state_dict())
    fresh.eval(), network.eval()
    assert torch.equal(fresh(**batch).logits, network(**batch).logits)


@pytest.mark.parametrize("name", ["resnet", "vit", "gpt2"])
def test_one_module_is_the_models_own_training_bit_for_bit(name):
    torch.manual_seed(0)
    make, data, options = CASES[name]
    model, batch = make(), data()
    objective = options.get("objective", "cross-entropy")
    network = ll.split(model, example=batch, depth=1, objective=objective, optimizer=adam)
    model.train(), network.train()
    optimizer = adam(model.parameters())
    for step in range(3):
        torch.manual_seed(step)  # GPT-2 has dropout
        network.step(batch)
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network.model.parameters(), strict=True))


@pytest.mark.parametrize("break_it", [False, True])
def test_modules_of_a_vit_equal_a_loop_over_its_layers(break_it):
    """K = 4: the class's own submodules, called one after the other with detach between them."""
    torch.manual_seed(0)
    batch = _images()
    cuts = [f"vit.layers.{i}" for i in range(3)]
    network = ll.split(_vit(), example=batch, cuts=cuts, optimizer=adam, head="0c1f")
    model, heads = copy.deepcopy(network.model), [copy.deepcopy(each.head) for each in network.objectives]
    layers = model.vit.layers
    stages = [
        lambda x: layers[0](model.vit.embeddings(x)),
        lambda x: layers[1](x),
        lambda x: layers[2](x),
        lambda x: model.classifier(model.vit.layernorm(layers[3](x))[:, 0]),
    ]
    owned = [list(model.vit.embeddings.parameters()) + list(layers[0].parameters())]
    owned += [list(layers[i].parameters()) for i in (1, 2)]
    owned += [[*layers[3].parameters(), *model.vit.layernorm.parameters(), *model.classifier.parameters()]]
    optimizers = [adam(p + list(h.parameters())) for p, h in zip(owned, [*heads, torch.nn.Identity()], strict=True)]
    for _ in range(3):
        network.step(batch)
        x = batch["pixel_values"]
        for k, stage in enumerate(stages):
            out = stage(x if break_it else x.detach())
            scores = out
            if k < 3:
                scores = heads[k](torch.nn.functional.layer_norm(out.mean(1), (32,)))[0]
            loss = torch.nn.functional.cross_entropy(scores, batch["labels"], reduction="none").mean()
            optimizers[k].zero_grad()
            loss.backward(retain_graph=break_it)
            if not break_it:
                optimizers[k].step()
            x = out
        if break_it:
            for optimizer in optimizers:
                optimizer.step()
    pairs = list(zip(network.model.state_dict().items(), model.state_dict().values(), strict=True))
    apart = max((a - b).abs().max().item() for (_, a), b in pairs)
    assert (apart < 1e-6) is not break_it


def test_a_shared_unembedding_is_read_and_not_trained_by_the_heads():
    """GPT-2 ties it to the embedding, which the first module trains; only its own norms are the heads'."""
    torch.manual_seed(0)
    network = ll.split(_gpt2(), example=_text(), depth=3, objective="next-token", head="shared", optimizer=adam)
    assert network.pieces[-1].reads == ("transformer.wte.weight",)
    assert "model.transformer.wte.weight" in network.module_parameters(1)
    for k in (1, 2):
        heads = [name for name in network.module_parameters(k) if name.startswith("stages.")]
        assert heads == [f"stages.{k - 1}.objective.head.norm.weight", f"stages.{k - 1}.objective.head.norm.bias"]
    network.step(_text())
    assert network.model.lm_head.weight is network.model.transformer.wte.weight
    merged = network.merge()
    assert merged.lm_head.weight is merged.transformer.wte.weight
    copied = copy.deepcopy(network)
    assert copied.objectives[0].head._scorer[0] is copied.model.lm_head


def test_a_tied_weight_moves_with_its_owner_alone():
    """With the first module's rate at zero the embedding stays, although the last module's loss depends on it."""
    torch.manual_seed(0)
    network = ll.split(_gpt2(), example=_text(), depth=3, objective="next-token", optimizer=adam)
    before = network.model.transformer.wte.weight.clone()
    network.optimizers[0].param_groups[0]["lr"] = 0.0
    network.step(_text())
    assert torch.equal(network.model.transformer.wte.weight, before)
    assert network.model.transformer.ln_f.weight.grad is not None


def test_bf16_autocast_trains_and_sees_new_weights():
    torch.manual_seed(0)
    network = ll.split(_vit(), example=_images(), depth=3, optimizer=adam)
    batch = _images()
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(network.step(batch))
    assert all(losses[-1][f"loss/{k}"] < losses[0][f"loss/{k}"] for k in (1, 2, 3))
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


@pytest.mark.parametrize("length", [12, 7])
def test_an_encoder_is_not_trained_on_the_labels_of_the_decoder(length):
    """T5's labels are the decoder's tokens; an encoder's tokens are others, even where there are as many."""
    config = transformers.T5Config(
        vocab_size=16, d_model=16, d_kv=8, d_ff=16, num_layers=3, num_heads=2, decoder_start_token_id=0
    )
    model, batch = transformers.T5ForConditionalGeneration(config), _text()
    batch["labels"] = batch["labels"][:, :length].contiguous()
    with pytest.raises(ll.LocalLearnError, match="expected features of the tokens that have labels"):
        ll.split(model, example=batch, cuts=["encoder.block.0"])
    network = ll.split(model, example=batch, depth=2, objective="token", optimizer=adam)
    part = network.pieces[0]
    assert part.path.startswith("decoder")
    assert {crossing.path for crossing in part.crossing} >= {"encoder"}
    first, *_, last = [network.step(batch) for _ in range(12)]
    assert last["loss/1"] < first["loss/1"] - 0.02
    assert last["loss/2"] < first["loss/2"] - 0.02


def test_transformers_are_not_split_in_width():
    with pytest.raises(ll.LocalLearnError, match="only modules of dense convolutions and batch norm"):
        ll.split(_vit(), example=_images(), depth=2, width=2)
    assert ll.split(_resnet(), example=_images(), depth=3, width=2).step(_images())["loss"] > 0
