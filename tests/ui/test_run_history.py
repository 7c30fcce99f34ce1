import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ui.pyramid import Pyramid
from ui.run_history import RunHistory, digest, trend
from workbench.protocol import Checkpoint, Diverged, Metrics, Phase, Progress, SampleBatch, Started, Warned
from workbench.run_folder import join_segments


def metrics(step, **values):
    return Metrics(step=step, values=values or {"loss": float(step)})


def started(resumed_from=-1):
    return Started(pid=1, device="cpu", resumed_from=resumed_from, total_steps=100)


def history_of(*batches):
    history = RunHistory()
    for events in batches:
        history.apply(digest(events))
    return history


def test_points_marks_samples_and_warnings_are_gathered():
    history = history_of(
        [started(), Phase(name="training"), metrics(1, loss=2.0, lr=0.1), metrics(2, loss=1.0)],
        [
            Checkpoint(step=2, path="checkpoints/2"),
            SampleBatch(step=2, offset=0, count=3),
            Warned(code="oom", message="halved"),
            Progress(step=2, total_steps=50),
            Diverged(step=3, metric="loss", kind="nan"),
        ],
    )
    assert list(history.lines["loss"].y) == [2.0, 1.0]
    assert history.last("loss") == (2.0, 1.0)
    assert history.last("nothing") is None
    assert [mark.kind for mark in history.marks] == ["checkpoint", "diverged"]
    assert history.sample_steps() == [2]
    assert history.warnings[0].code == "oom"
    assert (history.step, history.total_steps, history.device) == (2, 50, "cpu")
    assert sorted(history.rows()) == [(1, "loss", 2.0), (1, "lr", 0.1), (2, "loss", 1.0)]


def test_after_a_resume_history_is_joined_at_the_step_without_a_zigzag():
    first = [started(), *(metrics(step, loss=step) for step in range(1, 8)), Checkpoint(step=6, path="c")]
    again = [started(4), *(metrics(step, loss=100 + step) for step in range(5, 9))]
    for history in (history_of(first, again), history_of(first + again)):
        line = history.lines["loss"]
        assert list(line.x) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert list(line.y) == [1, 2, 3, 4, 105, 106, 107, 108]
        assert [(mark.kind, mark.step) for mark in history.marks] == [("resume", 4)]  # 6 was not the one used


def test_a_restart_from_the_beginning_drops_everything_before_it():
    history = history_of([started(), metrics(1), metrics(2)], [started(), metrics(1)])
    assert list(history.lines["loss"].x) == [1]


def test_a_divergence_stays_marked_after_the_resume_that_followed_it():
    history = history_of([started(), metrics(9), Diverged(step=10, metric="loss", kind="inf")], [started(5)])
    assert [(mark.kind, mark.step) for mark in history.marks] == [("diverged", 10), ("resume", 5)]


def test_steps_out_of_order_never_break_a_line():
    history = history_of([metrics(5), metrics(3), metrics(6)], [metrics(2), metrics(7)])
    assert list(history.lines["loss"].x) == [5, 6, 7]


def test_a_number_that_is_said_twice_at_a_step_is_one_point():
    history = history_of([metrics(1, mem=1.0), metrics(2, mem=2.0), metrics(2, mem=3.0)], [metrics(2, mem=4.0)])
    assert list(history.lines["mem"].y) == [1.0, 2.0]


def test_the_trend_is_one_word():
    def line(values):
        made = Pyramid()
        made.append(np.arange(len(values)), values)
        return made

    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    assert trend(line(np.linspace(0, 9, 100) + noise)) == "rising"
    assert trend(line(np.linspace(9, 0, 100) + noise)) == "falling"
    assert trend(line(1 + noise)) == "flat"
    assert trend(line(np.ones(3))) == "just begun"
    assert trend(line(np.full(20, np.nan))) == "no number"


events = st.lists(
    st.one_of(
        st.builds(started, st.integers(-1, 20)),
        st.lists(st.integers(1, 4), min_size=1, max_size=6),
    ),
    max_size=12,
)


@given(events, st.lists(st.integers(0, 60), max_size=4))
def test_joining_equals_the_rule_of_the_run_folder_however_the_events_arrive(script, cuts):
    told, step = [started()], 0
    for item in script:
        if isinstance(item, Started):
            step = max(0, min(step, item.resumed_from))
            told.append(started(step if step else -1))
        else:
            for stride in item:
                step += stride
                told.append(metrics(step, loss=float(len(told))))
    cuts = [0, *sorted(min(cut, len(told)) for cut in cuts), len(told)]
    history = history_of(*(told[a:b] for a, b in zip(cuts, cuts[1:], strict=False)))  # noqa: RUF007
    joined = [(one.step, one.values["loss"]) for one in join_segments(told)]
    line = history.lines.get("loss", Pyramid())
    assert list(zip(line.x, line.y, strict=True)) == joined
