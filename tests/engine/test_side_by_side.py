"""Two halves of a pass on two threads give what one thread gives, every time the same, and fail as one."""

from __future__ import annotations

import itertools
import threading
import time
from functools import partial
from typing import Any

import pytest
import torch

from engine import decoder_layer, frames
from engine import side_by_side as side_by_side_module
from engine.adapters import Adapters
from engine.masking import Example
from engine.packing import lay_out
from engine.side_by_side import Meeting, side_by_side
from tests.engine.test_decoder_layer import F64, FAMILIES, adapters_of
from tests.engine.test_half_weights import in_bf16

CPU = torch.device("cpu")
# two rankings of two responses that share a prompt, and two rows of their own: three units of about equal work a half
ROWS = [
    *(Example.plain((5, 6, 7, 8, *answer), 4) for answer in ((11, 12, 13, 2), (14, 15, 16, 2))),
    *(Example.plain((9, 6, 7, 8, *answer), 4) for answer in ((21, 22, 23, 2), (24, 25, 26, 2))),
    Example.plain((31, 32, 33, 34, 35, 36, 2), 2),
    Example.plain((41, 42, 43, 44, 45, 46, 2), 2),
]


@pytest.fixture(params=["whole sequences", "cut in the middle"])
def parted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In which of the two ways a pass is parted."""
    if request.param == "cut in the middle":
        monkeypatch.setattr(frames, "LEAST_CUT", 2)
        monkeypatch.setattr(frames, "EVEN", 0.0)


def passed(adapters: Adapters) -> list[torch.Tensor]:
    """States, and the gradients of all masters."""
    for one in adapters.parameters("policy"):
        one.grad = None
    layout = lay_out(ROWS, CPU, packed=True)
    with adapters.use("policy"):
        states = adapters.flat(layout, layout.through)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (states * weights.to(states.dtype)).sum().backward()
    return [states.detach(), *(one.grad.clone() for one in adapters.parameters("policy") if one.grad is not None)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_halves_give_the_states_and_gradients_of_the_whole(
    family: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch, two_threads: None, parted: None
) -> None:
    adapters = adapters_of(FAMILIES[family], F64)
    adapters.checkpointing(checkpointing)
    threads: set[str] = set()
    meeting = threading.Barrier(2, timeout=30)
    forward = decoder_layer._forward

    def watched(*given: object, **more: object) -> object:
        threads.add(threading.current_thread().name)
        if threading.current_thread() is not threading.main_thread():
            meeting.wait()  # one after the other they would never meet
        return forward(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder_layer, "_forward", watched)
    halves = passed(adapters)
    assert len(threads) == 2
    threads.clear()
    torch.set_num_threads(1)
    whole = passed(adapters)
    assert threads == {threading.current_thread().name}
    assert len(halves) == len(whole) == 1 + len(adapters.parameters("policy"))
    torch.testing.assert_close(halves[0], whole[0], rtol=1e-10, atol=1e-10)
    for one, other in zip(halves[1:], whole[1:], strict=True):  # masters and their gradients are fp32
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * other.abs().max().item())


def test_halves_give_the_same_bits_every_time(two_threads: None, parted: None) -> None:
    adapters = adapters_of(FAMILIES["llama"], torch.float32)
    first = passed(adapters)
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(first, passed(adapters), strict=True))


def test_memory_that_runs_out_in_one_half_is_the_error_of_the_pass(
    monkeypatch: pytest.MonkeyPatch, two_threads: None, parted: None
) -> None:
    adapters = adapters_of(FAMILIES["llama"])
    forward = decoder_layer.layer_forward
    calls = itertools.count(1)

    def short(x: torch.Tensor, *given: object, **more: object) -> object:
        if next(calls) == 2:  # of one half's second layer, or of the other half's first
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder_layer, "layer_forward", short)
    with pytest.raises(torch.OutOfMemoryError):
        passed(adapters)
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(decoder_layer, "layer_forward", forward)
    assert len(passed(adapters)) > 1  # and the next pass is as any other


def test_works_run_at_once_without_gradients_and_with_a_share_of_the_threads(two_threads: None) -> None:
    meeting = threading.Barrier(2, timeout=30)

    def work(number: int) -> tuple[int, bool, int]:
        meeting.wait()  # one after the other they would never meet
        return number, torch.is_grad_enabled(), torch.get_num_threads()

    assert side_by_side([lambda: work(1), lambda: work(2)]) == [(1, False, 1), (2, False, 1)]
    assert torch.get_num_threads() == 2
    assert side_by_side([lambda: torch.get_num_threads()]) == [2]


def test_every_work_has_ended_when_an_error_is_raised(two_threads: None) -> None:
    ended: list[int] = []

    def fails() -> None:
        raise ValueError("first")

    def takes_long() -> None:
        time.sleep(0.2)
        ended.append(1)

    with pytest.raises(ValueError, match="first"):
        side_by_side([fails, takes_long])
    assert ended == [1]


def test_works_that_meet_see_what_the_others_have_each_time(two_threads: None) -> None:
    meeting = Meeting(2)

    def work(number: int) -> list[list[tuple[int, int]]]:
        seen = []
        for turn in range(50):
            if number == turn % 2:
                time.sleep(0.001)  # now one is late, now the other
            seen.append(meeting.hand_round(number, (number, turn)))
        return seen

    expected = [[(0, turn), (1, turn)] for turn in range(50)]
    assert side_by_side([lambda: work(0), lambda: work(1)], meeting) == [expected, expected]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("failing", [0, 1])
def test_a_work_that_fails_lets_the_one_go_that_waits_for_it(failing: int, two_threads: None) -> None:
    meeting = Meeting(2)

    def work(number: int) -> None:
        meeting.hand_round(number, number)
        if number == failing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        meeting.hand_round(number, number)

    with pytest.raises(torch.OutOfMemoryError):
        side_by_side([lambda: work(0), lambda: work(1)], meeting)
    assert torch.get_num_threads() == 2


@pytest.mark.timeout(60)
def test_a_pass_that_is_cancelled_or_finds_no_second_thread_leaves_no_work_waiting(
    monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    pool, calls = side_by_side_module._pool(), itertools.count(1)

    class Short:
        def submit(self, *given: Any) -> Any:
            if next(calls) == 2:
                raise RuntimeError("can't start new thread")
            return pool.submit(*given)

    monkeypatch.setattr(side_by_side_module, "_pool", Short)
    meeting = Meeting(2)
    with pytest.raises(RuntimeError, match="new thread"):
        side_by_side([partial(meeting.hand_round, number, number) for number in range(2)], meeting)
    assert torch.get_num_threads() == 2
    monkeypatch.undo()
    meeting = Meeting(2)
    works = [partial(meeting.hand_round, number, number) for number in range(2)]
    assert side_by_side(works, meeting) == [[0, 1], [0, 1]]


@pytest.mark.timeout(60)
def test_passes_of_several_threads_wait_for_one_another(two_threads: None) -> None:
    """Else works of two passes would take the two threads, and wait for works that have none."""

    def passes(found: list[list[int]]) -> None:
        for _ in range(20):
            meeting = Meeting(2)

            def work(number: int, meeting: Meeting = meeting) -> list[int]:
                time.sleep(0.001)
                return meeting.hand_round(number, number)

            found.extend(side_by_side([partial(work, 0), partial(work, 1)], meeting))

    found: list[list[int]] = []
    threads = [threading.Thread(target=passes, args=(found,), daemon=True) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert found == [[0, 1]] * 120


@pytest.mark.timeout(60)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_backward_pass_that_fails_in_one_frame_ends_in_both(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch, two_threads: None, parted: None
) -> None:
    adapters = adapters_of(FAMILIES["llama"])
    adapters.checkpointing(checkpointing)
    backward, calls = decoder_layer.attend_backward, itertools.count(1)

    def short(*given: Any) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(*given)

    monkeypatch.setattr(decoder_layer, "attend_backward", short)
    with pytest.raises(torch.OutOfMemoryError):
        passed(adapters)
    monkeypatch.setattr(decoder_layer, "attend_backward", backward)
    assert len(passed(adapters)) > 1


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_frame_of_which_nothing_is_read_has_its_part_in_the_gradients(
    family: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    """A prompt longer than half of a pass: what its tokens have behind the last layer's attention goes nowhere."""
    monkeypatch.setattr(frames, "LEAST_CUT", 2)
    row = Example.plain((*range(5, 30), 2), 24)
    found = []
    for threads in (1, 2):
        adapters = in_bf16(adapters_of(FAMILIES[family], torch.float32))
        assert adapters.hold_halves(sampling=True) == "all"
        adapters.checkpointing(checkpointing)
        torch.set_num_threads(threads)
        layout = lay_out([row], CPU, packed=True)
        with adapters.use("policy"):
            states = adapters.flat(layout, layout.states)
        states.square().sum().backward()
        found.append([states.detach(), *(one.grad for one in adapters.parameters("policy"))])
    for whole, halves in zip(*found, strict=True):
        torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-5 * whole.abs().max().item())


def test_works_are_in_the_mode_of_their_pass(two_threads: None) -> None:
    with torch.inference_mode():
        assert side_by_side([torch.is_inference_mode_enabled] * 2) == [True, True]
    assert side_by_side([torch.is_inference_mode_enabled] * 2) == [False, False]
