"""The serving process as a client sees it: streams, scores, spans, cancels, and no bad request takes it down."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
import torch
from torch import Tensor

from engine.adapters import Adapters
from engine.base_model import LoadedBase, load_base
from engine.generate import generate
from engine.heads import ScalarHead
from engine.score import RewardModel, RewardStats, load_reward
from engine.serve import Server
from engine.templates import encode_prompt
from tests.engine.rows import scores_in_words
from workbench.ids import new_id
from workbench.model_folders import fingerprint
from workbench.protocol import (
    AnyReply,
    CountTokensRequest,
    ExportModelRequest,
    Failed,
    Finished,
    LogpsRequest,
    ModelRef,
    Rendered,
    RenderRequest,
    ResponseDone,
    SampleRequest,
    ScoreRequest,
    Scores,
    Token,
    TokenCounts,
    TokenLogps,
)
from workbench.records import Message, Sampling
from workbench.serve_client import ServeClient

HELLO = (Message("user", "Say hello to the thin man."),)
RAIN = (Message("system", "You are terse."), Message("user", "Rain?"))


def asked(request: Any, client: ServeClient, timeout: float = 60) -> tuple[AnyReply, list[AnyReply]]:
    before: list[AnyReply] = []
    return client.call(request, timeout, before.append), before


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASTEMAKER_RUNTIME", str(tmp_path_factory.mktemp("runtime")))
        patch.setenv("TASTEMAKER_CACHE", str(tmp_path_factory.mktemp("cache")))
        one = ServeClient()
        yield one
        one.leave()


@pytest.fixture(scope="module")
def base(tiny_model_dir: Path) -> LoadedBase:
    return load_base(tiny_model_dir, quantisation="fp32", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def shared(base: LoadedBase) -> Adapters:
    return Adapters(base)  # a base's layers belong to one Adapters for good


@pytest.fixture(scope="module")
def reward_dir(base: LoadedBase, shared: Adapters, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reward(tmp_path_factory.mktemp("reward"), shared, ScalarHead(base.hidden_size, seed=5))


def write_reward(folder: Path, adapters: Adapters, head: ScalarHead, head_means: tuple[float, ...] = ()) -> Path:
    adapters.add("made", rank=2, alpha=4, trainable=False)
    with torch.no_grad():
        for one in adapters.parameters("made"):
            one.copy_(torch.randn(one.shape, generator=torch.Generator().manual_seed(3)) * 0.2)
    adapters.save("made", folder, head.weight)
    RewardStats(0.5, 2.0, 10, "demonstrations", head_means).write(folder)
    adapters.remove("made")
    return folder


@pytest.fixture(scope="module")
def reward(shared: Adapters, reward_dir: Path) -> RewardModel:
    return load_reward(shared, reward_dir)


@pytest.fixture(scope="module")
def ref(tiny_model_dir: Path) -> ModelRef:
    return ModelRef(model_id="tiny", name="tiny", base=str(tiny_model_dir))


@pytest.fixture(scope="module")
def reward_ref(tiny_model_dir: Path, reward_dir: Path) -> ModelRef:
    return ModelRef(model_id="r", name="reward", base=str(tiny_model_dir), adapter=str(reward_dir))


def test_responses_are_streamed_and_equal_what_the_sampler_draws(
    client: ServeClient, ref: ModelRef, base: LoadedBase
) -> None:
    sampling = Sampling(1.0, 1.0, 0, 24, 7)
    request = SampleRequest(
        id=new_id(), model=ref, prompts=(HELLO, RAIN), count=2, sampling=sampling, quantisation="fp32"
    )
    last, replies = asked(request, client)
    assert last == Finished(id=request.id)
    done = {(one.prompt_index, one.response_index): one for one in replies if isinstance(one, ResponseDone)}
    prompts = [encode_prompt(base.tokenizer, messages) for messages in (HELLO, RAIN)]
    for prompt, many in enumerate(generate(base, prompts, sampling, count=2)):
        for response, completion in enumerate(many):
            reply = done[prompt, response]
            assert reply.token_count == len(completion.ids)
            assert reply.seed == completion.seed
            assert reply.finish_reason == ("stop" if completion.ended else "length")
            streamed = "".join(
                one.text
                for one in replies
                if isinstance(one, Token) and (one.prompt_index, one.response_index) == (prompt, response)
            )
            assert streamed == reply.text


def test_scores_are_the_reward_models_raw_and_standardised(
    client: ServeClient, reward_ref: ModelRef, reward: RewardModel
) -> None:
    rows = ((HELLO, "Hello."), (RAIN, "Yes, and more of it than yesterday."))
    last, _ = asked(ScoreRequest(id=new_id(), model=reward_ref, rows=rows, quantisation="fp32"), client)
    assert isinstance(last, Scores)
    expected = scores_in_words(reward, rows)
    assert last.scores == pytest.approx(expected, abs=1e-5)
    assert last.standardised == pytest.approx([(one - 0.5) / 2 for one in expected], abs=1e-5)
    assert last.stds == ()  # one head disagrees with nobody


def test_a_response_whose_ending_does_not_fit_has_no_score_and_the_reason_while_others_are_scored(
    client: ServeClient, reward_ref: ModelRef, reward: RewardModel
) -> None:
    """Of a context of 512 the prompt's end takes 256; what is left does not hold 600 letters and an end."""
    rows = ((HELLO, "Hello."), (HELLO, "y" * 600), (RAIN, "Yes."))
    last, _ = asked(ScoreRequest(id=new_id(), model=reward_ref, rows=rows, quantisation="fp32"), client)
    assert isinstance(last, Scores)
    assert last.scores[1] is None
    assert last.standardised[1] is None
    assert [last.scores[0], last.scores[2]] == pytest.approx(scores_in_words(reward, [rows[0], rows[2]]), abs=1e-5)
    assert list(last.refused) == [1]
    assert "it has 601 tokens" in last.refused[1]
    assert "do not fit beside its prompt into 512 tokens" in last.refused[1]


def test_a_response_that_was_cut_off_is_scored_without_an_end(
    client: ServeClient, reward_ref: ModelRef, reward: RewardModel
) -> None:
    rows = ((HELLO, "Hello."), (HELLO, "Hello."))
    request = ScoreRequest(id=new_id(), model=reward_ref, rows=rows, ended=(True, False), quantisation="fp32")
    last, _ = asked(request, client)
    assert isinstance(last, Scores)
    whole = reward.encode(HELLO, "Hello.")
    assert last.scores == pytest.approx(reward.score_ids([whole, whole[:-1]]).tolist(), abs=1e-5)
    assert last.scores[0] != pytest.approx(last.scores[1], abs=1e-3)
    last, _ = asked(msgspec.structs.replace(request, id=new_id(), ended=(False,)), client)
    assert isinstance(last, Failed)
    assert last.cause == "of 2 rows 1 say whether they ended"


def test_scores_of_an_ensemble_come_with_the_spread_of_its_heads(
    client: ServeClient, ref: ModelRef, base: LoadedBase, shared: Adapters, tmp_path: Path
) -> None:
    """Of heads d_k - mean of head k: sqrt(mean_k (d_k - mean d)^2), for each row in the order asked."""
    means = (0.1, -0.2, 0.4)
    folder = write_reward(tmp_path / "several", shared, ScalarHead(base.hidden_size, seed=5, heads=3), means)
    model = msgspec.structs.replace(ref, model_id="several", adapter=str(folder))
    rows = ((HELLO, "Hello."), (RAIN, "Yes, and more of it than yesterday."), (HELLO, "Thin."))
    last, _ = asked(ScoreRequest(id=new_id(), model=model, rows=rows, quantisation="fp32"), client)
    assert isinstance(last, Scores)
    several = load_reward(shared, folder, "several")
    by_head = several.ids_by_head([several.encode(messages, text) for messages, text in rows])
    assert last.scores == pytest.approx(by_head.mean(1).tolist(), abs=1e-5)
    levelled = by_head - torch.tensor(means)
    expected = (levelled - levelled.mean(1, keepdim=True)).square().mean(1).sqrt()
    assert min(last.stds) > 0
    assert last.stds == pytest.approx(expected.tolist(), abs=1e-5)
    shared.remove("several")


def test_log_probabilities_are_those_of_the_whole_softmax(client: ServeClient, ref: ModelRef, base: LoadedBase) -> None:
    last, _ = asked(LogpsRequest(id=new_id(), model=ref, rows=((HELLO, "Hi é"),), quantisation="fp32"), client)
    assert isinstance(last, TokenLogps)
    prompt = encode_prompt(base.tokenizer, HELLO)
    answer = base.tokenizer("Hi é", add_special_tokens=False)["input_ids"] + [2]
    logits = base.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    expected = [float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(answer)]
    assert last.logps[0] == pytest.approx(expected, abs=1e-4)
    assert "".join(last.tokens[0]) == "Hi é<|im_end|>"


def test_rendering_shows_what_is_trained_and_what_is_not(client: ServeClient, ref: ModelRef) -> None:
    last, _ = asked(RenderRequest(id=new_id(), model=ref, rows=((HELLO, "Hello."), (RAIN, ""))), client)
    assert isinstance(last, Rendered)
    trained, alone = last.rows
    assert [text for text, is_trained in trained if is_trained] == ["Hello.<|im_end|>"]
    assert trained[0][0].endswith("<|im_start|>assistant\n")
    assert alone == (
        (
            "<|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
    )
    counted, _ = asked(CountTokensRequest(id=new_id(), model=ref, rows=((HELLO, "Hello."), (RAIN, ""))), client)
    assert isinstance(counted, TokenCounts)
    assert counted.counts == last.token_counts
    assert counted.context == 512


def test_a_cancelled_request_ends_at_once_and_the_next_one_is_served(client: ServeClient, ref: ModelRef) -> None:
    replies: list[AnyReply] = []
    request = SampleRequest(
        id=new_id(),
        model=ref,
        prompts=(HELLO,) * 8,
        count=8,
        sampling=Sampling(1.0, 1.0, 0, 400, 1),
        quantisation="fp32",
    )

    def take(reply: AnyReply) -> None:
        replies.append(reply)
        if isinstance(reply, Token):
            client.cancel(request.id)

    client.request(request, take)
    counted, _ = asked(CountTokensRequest(id=new_id(), model=ref, rows=((HELLO, ""),)), client)
    assert isinstance(counted, TokenCounts)
    wait_for(lambda: bool(replies) and isinstance(replies[-1], Failed))
    assert isinstance(replies[-1], Failed)
    assert replies[-1].code == "cancelled"
    assert not any(isinstance(one, Finished) for one in replies)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda ref: {"model": msgspec.structs.replace(ref, base="/nowhere")}, "There is no model"),
        (lambda ref: {"model": msgspec.structs.replace(ref, adapter="/nowhere")}, "The adapter in"),
        (lambda _: {"sampling": Sampling(-1.0)}, "cannot be drawn"),
        (lambda _: {"prompts": (HELLO,), "count": 0}, "cannot be drawn"),
        (lambda _: {"quantisation": "int2"}, ""),
    ],
)
def test_a_bad_request_fails_alone(
    client: ServeClient, ref: ModelRef, break_it: Callable[[ModelRef], dict[str, Any]], says: str
) -> None:
    fields: dict[str, Any] = {"model": ref, "prompts": (HELLO,), "sampling": Sampling(0.0, max_new_tokens=2)}
    last, _ = asked(SampleRequest(id=new_id(), **(fields | break_it(ref))), client)
    if says:
        assert isinstance(last, Failed)
        assert says in last.message
    good, _ = asked(SampleRequest(id=new_id(), **fields), client)
    assert isinstance(good, Finished)


def test_memory_that_ran_out_is_given_back_when_nothing_holds_it_any_more(
    ref: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[weakref.ref[Tensor]] = []
    held_at_the_end: list[bool] = []

    def run_out(*_: object) -> None:
        states = torch.zeros(8)
        taken.append(weakref.ref(states))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("engine.serve_requests.carry_out", run_out)
    monkeypatch.setattr("engine.serve_models.warm.let_go", lambda: held_at_the_end.append(taken[0]() is not None))
    replies: list[Failed] = []
    ticket = Mock(request=SampleRequest(id="1", model=ref, prompts=(HELLO,)), reply=replies.append)
    Server(tmp_path / "socket")._answer(ticket)
    assert (replies[0].message, held_at_the_end) == ("Memory ran out", [False])


def test_a_template_without_end_is_stopped(client: ServeClient, tiny_model_dir: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for one in tiny_model_dir.iterdir():
        (hostile / one.name).write_bytes(one.read_bytes())
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}"
    (hostile / "chat_template.jinja").write_text(loop)
    began = time.monotonic()
    model = ModelRef(model_id="h", name="h", base=str(hostile))
    last, _ = asked(RenderRequest(id=new_id(), model=model, rows=((HELLO, "x"),)), client)
    assert isinstance(last, Failed)
    assert "does not come to an end" in last.message
    assert time.monotonic() - began < 30


def test_a_damaged_adapter_or_a_changed_base_is_refused_before_it_is_loaded(
    client: ServeClient, ref: ModelRef, reward_ref: ModelRef, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(reward_ref.adapter, tmp_path / "reward"))
    file = folder / "adapter_model.safetensors"
    model = msgspec.structs.replace(reward_ref, adapter=str(folder), adapter_sha256=fingerprint(folder, cached=False))
    raw, status = bytearray(file.read_bytes()), file.stat()
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a bad disk changes it: no date tells
    last, _ = asked(ScoreRequest(id=new_id(), model=model, rows=((HELLO, "Hi"),), quantisation="fp32"), client)
    assert isinstance(last, Failed)
    assert last.message == "The adapter of reward has changed since it was added"
    changed = msgspec.structs.replace(ref, base=str(shutil.copytree(ref.base, tmp_path / "base")), base_sha256="0" * 64)
    last, _ = asked(LogpsRequest(id=new_id(), model=changed, rows=((HELLO, "Hi"),), quantisation="fp32"), client)
    assert isinstance(last, Failed)
    assert last.message == "The base of tiny has changed since it was added"


def test_an_adapter_is_exported_plain_and_merged(
    client: ServeClient, reward_ref: ModelRef, reward: RewardModel, tmp_path: Path
) -> None:
    plain, _ = asked(ExportModelRequest(id=new_id(), model=reward_ref, destination=str(tmp_path / "plain")), client)
    assert isinstance(plain, Finished)
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == Path(reward_ref.base).name
    assert (tmp_path / "plain" / "reward_stats.json").exists()
    merged, _ = asked(
        ExportModelRequest(id=new_id(), model=reward_ref, destination=str(tmp_path / "whole"), what="merged"), client
    )
    assert isinstance(merged, Finished)
    from transformers import AutoModelForSequenceClassification

    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    ids = reward.encode(HELLO, "Hello.")
    with torch.no_grad():
        found = whole(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits
    assert float(found) == pytest.approx(float(reward.score_ids([ids])), abs=0.1)  # rounded to bf16 once
    again, _ = asked(ExportModelRequest(id=new_id(), model=reward_ref, destination=str(tmp_path / "plain")), client)
    assert isinstance(again, Failed)
    assert "already" in again.message


def test_lines_that_are_no_requests_are_answered_and_survived(client: ServeClient, ref: ModelRef) -> None:
    client.start()
    process = client._process
    assert process is not None
    with raw_line(process.socket_path) as line:
        line.sendall(b'{"type": "nonsense", "id": "a"}\n\xff\xfe\n[]\n')
        answers = line.makefile("rb")
        said = [json.loads(answers.readline()) for _ in range(3)]
        assert [one["id"] for one in said] == ["a", "", ""]
        assert all(one["type"] == "failed" for one in said)
        answers.close()
    good, _ = asked(CountTokensRequest(id=new_id(), model=ref, rows=((HELLO, ""),)), client)
    assert isinstance(good, TokenCounts)


def test_the_socket_is_for_its_user_alone(client: ServeClient) -> None:
    client.start()
    process = client._process
    assert process is not None
    assert process.socket_path.stat().st_mode & 0o077 == 0


def test_a_process_whose_client_is_gone_ends_by_itself(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import engine.serve as serve; serve.ORPHAN_AFTER_S = 0.5; "
        "serve.serve(Path(sys.argv[1]))"
    )
    child = subprocess.Popen([_python(), "-c", script, str(tmp_path / "s.sock")])
    try:
        wait_for((tmp_path / "s.sock").exists)
        with raw_line(tmp_path / "s.sock") as line:
            line.sendall(b"{}\n")
            assert b"failed" in line.recv(4096)
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()


@contextlib.contextmanager
def raw_line(path: Path) -> Iterator[socket.socket]:
    from workbench.sockets import connect

    until = time.monotonic() + 30
    while True:
        try:
            line = connect(path, 30.0)
            break
        except OSError:
            assert time.monotonic() < until
    with line:
        yield line


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.01)


def _python() -> str:
    import sys

    return sys.executable
