import mmap

import pytest
import torch

from engine.memory import MicroBatch, PhasePeaks, is_out_of_memory, memory_bytes, phase_in_words, run_micro_batched


class FakeSession:
    device = torch.device("cpu")
    phase_name = "training"

    def __init__(self):
        self.warnings = []

    def warn(self, code, message, remedy=""):
        self.warnings.append((code, message))

    def note(self, code, message):
        pass


def out_of_memory():
    return torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


class Model:
    """Memory for so many rows; a batch that is too large fails in the middle of its backward pass."""

    def __init__(self, fits):
        self.fits = fits
        self.weight = torch.zeros(4, requires_grad=True)
        self.sizes = []

    def work(self, rows):
        self.sizes.append(len(rows))
        noise = torch.rand(())
        loss = sum((self.weight * row).sum() for row in rows) * noise.round()
        loss.backward()
        if len(rows) > self.fits:
            raise out_of_memory()
        return len(rows), float(noise)

    def reset(self):
        self.weight.grad = None


def train(fits, micro_batch, rows):
    model, session = Model(fits), FakeSession()
    torch.manual_seed(3)
    results, fitted = run_micro_batched(session, rows, micro_batch, model.work, reset=model.reset)
    return model, session, results, fitted


ROWS = [torch.full((4,), float(n)) for n in range(8)]


def test_without_trouble_all_rows_are_done_in_order():
    model, session, results, fitted = train(8, 3, ROWS)
    assert model.sizes == [3, 3, 2]
    assert [size for size, _ in results] == [3, 3, 2]
    assert fitted == 3
    assert session.warnings == []


def test_running_out_halves_the_micro_batch_and_keeps_the_batch():
    model, session, results, fitted = train(2, 8, ROWS)
    assert model.sizes == [8, 4, 2, 2, 2, 2]
    assert fitted == 2
    assert sum(size for size, _ in results) == 8
    assert [code for code, _ in session.warnings] == ["oom", "oom"]
    assert "the batch of 8 stays" in session.warnings[0][1]


def test_gradients_of_the_failed_attempt_are_gone_and_random_numbers_are_the_same():
    broken, _, results, _ = train(2, 4, ROWS)
    smooth, _, expected, _ = train(2, 2, ROWS)
    assert results == expected
    assert torch.equal(broken.weight.grad, smooth.weight.grad)


def test_what_is_halved_is_what_was_really_held():
    """Where tokens cut a micro-batch of 64 rows to 4, the next try has 2 and not 32, which would be 4 again."""
    model, session = Model(2), FakeSession()
    cut = lambda rows, most: [rows[at : at + min(most, 4)] for at in range(0, len(rows), min(most, 4))]  # noqa: E731
    _, fitted = run_micro_batched(session, ROWS, 64, model.work, reset=model.reset, cut=cut)
    assert model.sizes == [4, 2, 2, 2, 2]
    assert fitted == 2
    assert "with 4 rows at once; going on with 2" in session.warnings[0][1]


def test_the_notice_names_the_phase_as_the_plan_does():
    assert [phase_in_words(name) for name in ("training", "reference", "rollout", "score", "update")] == [
        "update",
        "score",
        "rollout",
        "score",
        "update",
    ]
    assert (phase_in_words("evaluating"), phase_in_words("")) == ("evaluating", "starting")


def test_one_row_that_does_not_fit_raises():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        train(0, 2, ROWS)
    tried = []

    def work(_):
        tried.append(1)
        raise out_of_memory()

    with pytest.raises(torch.cuda.OutOfMemoryError):
        run_micro_batched(FakeSession(), ROWS, 1, work)
    assert len(tried) == 2


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_one_row_is_tried_again_when_something_could_be_let_go(micro_batch):
    """Rows that are cut apart for their length were alone before, too: the micro-batch stays what it was."""
    kept, session, done = [1], FakeSession(), []

    def work(rows):
        if kept and len(done) == 3:
            raise out_of_memory()
        done.append(rows)
        return len(rows)

    def reset():
        done.clear()
        kept.clear()

    found = run_micro_batched(
        session, ROWS, micro_batch, work, reset=reset, cut=lambda rows, _: [[one] for one in rows]
    )
    assert found == ([1] * 8, micro_batch)
    [(code, said)] = session.warnings
    assert (code, said.split("with ")[1]) == (
        "oom",
        "a single row; what could be let go was, and it is tried once more",
    )


def test_the_notice_of_a_measurement_speaks_of_no_batch():
    session, model = FakeSession(), Model(2)
    run_micro_batched(session, ROWS, 4, model.work, reset=model.reset, learns=False)
    assert session.warnings[0][1].endswith("with 4 rows at once; going on with 2, all 8 are measured")


def test_a_micro_batch_is_what_fitted_and_remembers_where_more_ran_out():
    session = FakeSession()
    size = MicroBatch(8)
    size.take(session, 8)
    assert size.state() == {"rows": 8, "ran_out_in": ""}
    size.take(session, 4)
    session.phase_name = "rollout"
    size.take(session, 4)
    assert size.state() == {"rows": 4, "ran_out_in": "update"}
    again = MicroBatch(8)
    again.restore(session, size.state())
    assert again == size
    again.take(session, 1, "reference")
    assert again == MicroBatch(1, "score")


def test_other_errors_are_not_swallowed():
    def work(_):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes"):
        run_micro_batched(FakeSession(), ROWS, 4, work, reset=lambda: None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (out_of_memory(), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_that_memory_ran_out(error, expected):
    assert is_out_of_memory(error) is expected


def test_memory_in_use_is_measured():
    now, peak = memory_bytes(torch.device("cpu"))
    assert 10_000_000 < now <= peak


def test_the_peak_of_each_phase_is_its_own():
    peaks, mib = PhasePeaks(torch.device("cpu")), 2**20
    peaks.enter("rollout")
    before = memory_bytes(torch.device("cpu"))[0]
    held = mmap.mmap(-1, 256 * mib)  # of its own: a tensor may be given what this process has freed, but still holds
    for place in range(0, len(held), mmap.PAGESIZE):
        held[place] = 1
    held.close()
    peaks.enter("update")
    peaks.enter("rollout")  # a phase that comes again keeps its highest
    found = peaks.read()
    assert found["rollout"] - before > 200 * mib
    assert found["rollout"] - found["update"] > 200 * mib


def test_where_the_mark_cannot_be_set_back_a_phase_that_does_not_raise_it_counts_with_what_it_ended_with(monkeypatch):
    mark = [100]
    monkeypatch.setattr("engine.memory._reset_high_water", lambda _: False)
    monkeypatch.setattr("engine.memory.memory_bytes", lambda _: (80, mark[0]))
    peaks = PhasePeaks(torch.device("cpu"))
    peaks.enter("load")
    mark[0] = 300  # load raises the mark, rollout does not, score does
    peaks.enter("rollout")
    peaks.enter("score")
    mark[0] = 500
    assert peaks.read() == {"load": 300, "rollout": 80, "score": 500}


@pytest.mark.gpu
def test_memory_really_runs_out_on_a_gpu_and_training_goes_on():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    total = torch.cuda.get_device_properties(0).total_memory
    session = FakeSession()
    session.device = torch.device("cuda", 0)

    def work(rows):
        return torch.empty(len(rows) * (total // 3), dtype=torch.uint8, device="cuda").numel()

    results, fitted = run_micro_batched(session, ROWS, 8, work, reset=lambda: None)
    assert fitted in (1, 2)
    assert len(results) == 8 // fitted
    assert session.warnings
