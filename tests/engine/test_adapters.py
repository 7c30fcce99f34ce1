from __future__ import annotations

import json

import pytest
import torch

from engine.adapters import Adapters
from engine.heads import ScalarHead, load_head
from engine.logps import token_logps
from engine.masking import Example
from engine.score import RewardStats, load_reward, score
from tests.engine.conftest import randomise
from workbench.errors import UserError

ROWS = [[5, 6, 7, 8, 9, 10, 2], [11, 12, 13, 2]]


def nll(adapters, name):
    layout = adapters.lay_out([Example.plain(row, 0) for row in ROWS])
    with adapters.use(name):
        hidden = adapters.flat(layout)
    return -token_logps(hidden[layout.states], layout.targets, adapters.base.head_weight)[0].sum()


def states(adapters, row):
    return adapters.flat(adapters.lay_out([Example.plain(row)]))


def test_a_new_adapter_changes_nothing_and_trains_only_itself(adapters):
    before = nll(adapters, None)
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    adapters.add("reference", rank=4, alpha=8, trainable=False)
    assert torch.equal(nll(adapters, "policy"), before)
    trainable = {id(one) for one in adapters.base.model.parameters() if one.requires_grad}
    assert trainable == {id(one) for one in adapters.parameters("policy")}
    assert all(one.dtype == torch.float32 for one in adapters.parameters("policy"))


def test_every_linear_layer_but_the_head_is_adapted(adapters):
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    assert len(adapters.parameters("policy")) == 2 * 7 * 2  # layers x projections x (A, B)
    assert not any("lm_head" in key for key in adapters.state("policy"))


def test_the_forward_equals_the_formula_of_lora(adapters):
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    randomise(adapters, "policy", 0.2)
    layer = adapters.base.model.model.layers[0].mlp.up_proj
    x = torch.randn(3, 64)
    expected = x @ (layer.base_layer.weight + 2.0 * layer.lora_B["policy"].weight @ layer.lora_A["policy"].weight).T
    with adapters.use("policy"):
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("between", ["nothing", "switch", "switch and back", "bare base"])
def test_switching_between_forward_and_backward_keeps_every_gradient(make_base, checkpointing, between):
    def run(between, checkpointing):
        adapters = Adapters(make_base(dtype=torch.float64))
        for name in ("policy", "value", "reward"):
            adapters.add(name, rank=4, alpha=8, trainable=name != "reward", seed=len(name))
            randomise(adapters, name, 0.2, len(name))
        adapters.checkpointing(checkpointing)
        loss = nll(adapters, "policy")
        if between == "switch":
            adapters.base.active = "value"
        elif between != "nothing":
            with adapters.use("value" if between == "switch and back" else None), torch.no_grad():
                states(adapters, ROWS[0])
        loss.backward()
        return adapters

    plain, tested = run("nothing", False), run(between, checkpointing)
    for one, other in zip(plain.parameters("policy"), tested.parameters("policy"), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for name in ("value", "reward"):
        assert all(one.grad is None for one in tested.parameters(name))


def test_one_backward_over_two_adapters_reaches_both(make_base):
    adapters = Adapters(make_base(dtype=torch.float64))
    for name in ("policy", "value"):
        adapters.add(name, rank=4, alpha=8, trainable=True)
        randomise(adapters, name, 0.2, len(name))
    adapters.checkpointing(True)
    (nll(adapters, "policy") + nll(adapters, "value")).backward()
    together = {name: [one.grad.clone() for one in adapters.parameters(name)] for name in ("policy", "value")}
    for name, grads in together.items():
        for one in adapters.parameters(name):
            one.grad = None
        nll(adapters, name).backward()
        for one, expected in zip(adapters.parameters(name), grads, strict=True):
            torch.testing.assert_close(one.grad, expected)


def test_a_frozen_adapter_stays_frozen_after_the_bare_base_was_used(adapters):
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    adapters.add("reward", rank=4, alpha=8, trainable=False)
    with adapters.use("reward"), adapters.use(None):
        states(adapters, ROWS[0])
    assert not any(one.requires_grad for one in adapters.parameters("reward"))
    assert adapters.active is None


def test_removing_an_adapter_leaves_the_others_as_they_were(adapters):
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    adapters.add("reward", rank=4, alpha=8, trainable=False)
    adapters.add("reference", rank=4, alpha=8, trainable=False)
    adapters.remove("reference")
    assert adapters.names == ("policy", "reward")
    assert all(one.requires_grad for one in adapters.parameters("policy"))
    assert not any(one.requires_grad for one in adapters.parameters("reward"))
    with pytest.raises(KeyError, match="reference"), adapters.use("reference"):
        pass


def test_saved_and_loaded_an_adapter_gives_the_same_numbers(adapters, make_base, tmp_path):
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    randomise(adapters, "policy", 0.2)
    adapters.save("policy", tmp_path)
    other = Adapters(make_base())
    other.load("start", tmp_path, trainable=False)
    other.copy("start", "policy", trainable=True)
    assert torch.equal(nll(other, "start"), nll(adapters, "policy"))
    assert torch.equal(nll(other, "policy"), nll(adapters, "policy"))


def test_peft_itself_loads_what_we_save(adapters, make_base, tmp_path):
    from peft import PeftModel

    adapters.add("policy", rank=4, alpha=8, trainable=True)
    randomise(adapters, "policy", 0.2)
    adapters.save("policy", tmp_path)
    model = PeftModel.from_pretrained(make_base().model, str(tmp_path))
    ids = torch.tensor([ROWS[0]])
    with adapters.use("policy"):
        torch.testing.assert_close(model(ids).logits, adapters.base.model(ids).logits)


def test_a_saved_reward_adapter_scores_the_same_in_transformers_and_peft(tiny_model_dir, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    from engine.base_model import load_base

    adapters = Adapters(load_base(tiny_model_dir, quantisation="fp32", device=torch.device("cpu")))
    adapters.add("reward", rank=4, alpha=8, trainable=True)
    randomise(adapters, "reward", 0.2)
    head = ScalarHead(64, seed=3)
    adapters.save("reward", tmp_path, head.weight)
    RewardStats(0.5, 2.0, 8, "demonstrations").write(tmp_path)

    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    theirs = PeftModel.from_pretrained(theirs, str(tmp_path)).eval()
    theirs.config.pad_token_id = None  # pad == eos: transformers would read one token too early
    ours = load_reward(adapters, tmp_path, "again")
    scores = ours.score_ids(ROWS)
    for row, value in zip(ROWS, scores, strict=True):
        torch.testing.assert_close(theirs(torch.tensor([row])).logits[0, 0], value)
    assert ours.stats == RewardStats(0.5, 2.0, 8, "demonstrations")
    assert torch.equal(load_head(tmp_path).weight, head.weight)
    layout = adapters.lay_out([Example.plain(row) for row in ROWS])
    torch.testing.assert_close(score(adapters, "reward", head, layout), scores)


def test_an_adapter_of_another_base_is_refused(adapters, make_base, tmp_path):
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    adapters.save("policy", tmp_path)
    other = Adapters(make_base(hidden=32))
    with pytest.raises(UserError, match="does not fit this base"):
        other.load("policy", tmp_path, trainable=False)
    assert other.names == ()


def test_an_imported_adapter_never_changes_the_base_as_it_is_loaded(adapters, tmp_path):
    # peft's "pissa" subtracts the principal part of the adapter from the base's own weights as it is injected
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    randomise(adapters, "policy", 0.2)
    adapters.save("policy", tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"init_lora_weights": "pissa"}))
    ids = torch.tensor([ROWS[0]])
    before = adapters.base.model(ids).logits
    adapters.load("again", tmp_path, trainable=False)
    assert torch.equal(adapters.base.model(ids).logits, before)
    with adapters.use("policy"):
        expected = states(adapters, ROWS[0])
    with adapters.use("again"):
        torch.testing.assert_close(states(adapters, ROWS[0]), expected)


def test_an_adapter_of_the_head_is_refused_before_it_touches_the_model(adapters, tmp_path):
    from safetensors.torch import load_file, save_file

    adapters.add("policy", rank=4, alpha=8, trainable=True)
    adapters.save("policy", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for part, shape in (("A", (4, 64)), ("B", (272, 4))):
        tensors[f"base_model.model.lm_head.lora_{part}.weight"] = torch.zeros(shape)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="LM head"):
        adapters.load("again", tmp_path, trainable=False)
    assert adapters.names == ("policy",)
    assert type(adapters.base.model.lm_head) is torch.nn.Linear
