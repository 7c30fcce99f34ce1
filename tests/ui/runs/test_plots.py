import math
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QFontMetrics, QImage, QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QMenu, QWidget

from ui import plot_grid
from ui.plot_export import columns_of, save_csv
from ui.plot_grid import PlotGrid
from ui.plot_key import looks_of
from ui.plot_link import PlotLink, settled_range
from ui.plot_table import PlotTable, PlotTableDialog
from ui.run_history import Batch, Mark, RunHistory, digest
from ui.theme import DARK, LIGHT, font
from workbench.errors import UserError
from workbench.metrics import plots_for
from workbench.records import METHODS


@pytest.fixture
def grid(qtbot, theme):
    made = PlotGrid()
    qtbot.addWidget(made)
    made.resize(1100, 800)
    with qtbot.waitExposed(made):
        made.show()
    return made


def history_of(run):
    history = RunHistory()
    history.apply(digest(run.folder.events()))
    return history


def plot(grid, title):
    return next(one for one in grid.plots if one.title == title)


def drawn(grid, qtbot, title="Score"):
    grid.mark_dirty()
    qtbot.waitUntil(lambda: plot(grid, title).built and not plot(grid, title).dirty, timeout=10_000)
    return plot(grid, title)


@pytest.fixture
def ppo(script):
    run = script("ppo")
    run.start()
    run.steps(1, 40)
    run.checkpoint(8)
    return run


# ---- what is shown ----


def test_pyqtgraph_is_loaded_with_the_first_plot_and_not_before():
    code = "import sys, ui.plot_grid, ui.runs_pane, ui.train_pane; assert 'pyqtgraph' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_shows_its_plots_in_the_glossary_order(script, grid, qtbot, method):
    run = script(method)
    run.start()
    run.steps(1, 20)
    grid.set_run(method, history_of(run))
    grid.draw_now()
    shown = [one.title for one in grid.plots if not one.isHidden()]
    assert shown == [title for title in plots_for(method) if title in shown]
    assert len(shown) >= 5


def test_memory_is_plotted_in_the_unit_of_plan_and_log_and_its_labels_have_room(script, grid):
    run = script("dpo")
    run.start()
    run.steps(1, 9)  # about 1.6e9 bytes, at most 1.9e9: 1.5 and 1.8 GiB
    grid.set_run("dpo", history_of(run))
    grid.draw_now()
    memory = plot(grid, "Memory")
    memory.build()  # it lies below the fold
    memory.redraw()
    assert " GiB" in memory.summary()
    axis = memory._canvas._left
    texts = [text for _, text in axis._tickLevels[0]]
    assert texts
    assert all(text.endswith(" GiB") for text in texts)
    assert axis.minimumWidth() > max(QFontMetrics(font("small")).horizontalAdvance(text) for text in texts)


def test_plots_without_data_are_hidden_until_they_have_some(script, grid, qtbot):
    run = script("reward")
    run.start()
    run.steps(1, 4)  # nothing held out yet
    history = history_of(run)
    grid.set_run("reward", history)
    grid.draw_now()
    assert plot(grid, "Calibration").isHidden()
    assert not plot(grid, "Loss").isHidden()
    run.steps(5, 5)
    grid.mark_dirty(history.apply(digest(list(run.folder.events())[-2:])))
    qtbot.waitUntil(lambda: not plot(grid, "Calibration").isHidden())


def test_an_empty_run_says_so(grid):
    grid.set_run("sft", RunHistory())
    grid.draw_now()
    assert grid._empty.isVisible()
    assert not grid._toolbar.isVisible()


def test_the_title_has_the_newest_value_and_the_summary_is_spoken(ppo, grid, qtbot):
    history = history_of(ppo)
    grid.set_run("ppo", history)
    card = drawn(grid, qtbot, "KL")
    value = history.last("objective/kl")[1]
    assert card._value.text() == f"{value:.2f}"
    assert card.accessibleName() == "KL, plot"
    assert card.accessibleDescription().startswith(f"KL {value:.2f} nats, rising, rollout 40")


def test_lines_of_a_plot_differ_in_colour_and_in_style():
    for method in METHODS:
        for metrics in plots_for(method).values():
            looks = looks_of(metrics)
            styles = {(look.index, look.dashes) for look in looks}
            assert len(styles) == len(looks) or any(one.metric.key.endswith("_high") for one in looks)
            for theme in (LIGHT, DARK):
                for look in looks:
                    assert theme.series(look.index).startswith("#")
    loss = looks_of(plots_for("sft")["Loss"])
    assert [look.name for look in loss] == ["train", "held-out"]
    assert loss[0].dashes == ()
    assert loss[1].dashes != ()
    score = looks_of(plots_for("ppo")["Score"])
    assert [look.name for look in score] == ["train", "validation"]


# ---- speed and rest ----


def test_plots_out_of_sight_draw_nothing(ppo, grid, qtbot):
    grid.set_run("ppo", history_of(ppo))
    drawn(grid, qtbot)
    qtbot.waitUntil(lambda: not grid._timer.isActive())
    far = plot(grid, "Throughput")
    assert far.has_data()
    assert not far.built
    grid.hide()
    grid.mark_dirty()
    assert not grid._timer.isActive()


def test_events_between_two_frames_are_drawn_once(ppo, grid, qtbot, monkeypatch):
    history = history_of(ppo)
    grid.set_run("ppo", history)
    card = drawn(grid, qtbot)
    qtbot.waitUntil(lambda: not grid._timer.isActive())
    frames = []
    monkeypatch.setattr(card._canvas, "draw", lambda *_args, **_options: frames.append(1))
    for step in range(41, 61):
        grid.mark_dirty(history.apply(Batch(points={"objective/scores": (np.array([step]), np.array([1.0]))})))
    qtbot.waitUntil(lambda: len(frames) > 0)
    assert len(frames) == 1


def test_a_frame_of_a_million_points_stays_fluid(grid, qtbot):
    random = np.random.default_rng(0)
    keys = ["objective/scores", "eval_objective/scores", "objective/kl", "eval_objective/kl"]
    keys += ["objective/rlhf_reward", "objective/non_score_reward", "ppo/mean_length", "eval_ppo/mean_length"]
    count = 1_000_000
    history = RunHistory()
    x = np.arange(count, dtype=float)
    history.apply(Batch(points={key: (x, random.standard_normal(count)) for key in keys}))
    grid.set_run("ppo", history)
    drawn(grid, qtbot, "Reward")
    times = []
    for frame in range(12):
        more = np.arange(count + 10 * frame, count + 10 * (frame + 1), dtype=float)
        start = time.thread_time()
        grid.mark_dirty(history.apply(Batch(points={key: (more, random.standard_normal(10)) for key in keys})))
        grid.draw_now()
        grid._timer.stop()
        QApplication.processEvents()
        times.append(time.thread_time() - start)
    assert sorted(times)[len(times) // 4] < 0.060  # 10 ms on an idle machine; CPU time, since others may be busy


def test_a_spike_in_a_million_points_reaches_the_screen(grid, qtbot):
    y = np.zeros(1_000_000)
    y[123_456] = 5.0
    history = RunHistory()
    history.apply(Batch(points={"objective/scores": (np.arange(1_000_000, dtype=float), y)}))
    grid.set_run("ppo", history)
    card = drawn(grid, qtbot)
    curve = card._canvas._curves["objective/scores"]
    assert curve.yData.max() == 5.0
    assert len(curve.yData) <= 2 * card._canvas.columns()


def test_ranges_rest_until_data_leave_them():
    assert settled_range((0.0, 10.0), (1.0, 9.0)) == (0.0, 10.0)
    low, high = settled_range((0.0, 10.0), (1.0, 12.0))
    assert low <= 1
    assert high > 12
    shrunk = settled_range((0.0, 100.0), (1.0, 2.0))
    assert shrunk[1] < 3
    assert settled_range((0.0, 1.0), None) == (0.0, 1.0)
    flat = settled_range((0.0, 0.0), (5.0, 5.0))
    assert flat[0] < 5 < flat[1]
    assert settled_range((0.0, 0.0), (0.0, 0.0))[1] > 0


# ---- the link ----


def test_the_range_follows_the_run_in_strides():
    link = PlotLink()
    moves = []
    link.range_changed.connect(lambda: moves.append(link.x_range))
    for step in range(1, 401):
        link.extend(1, step)
        assert link.x_range[0] <= 1
        assert link.x_range[1] >= step
    assert len(moves) < 80


def test_zooming_stops_following_and_fit_goes_back():
    link = PlotLink()
    link.extend(1, 100)
    link.zoom(20, 40)
    link.extend(1, 120)
    assert link.x_range == (20, 40)
    link.fit()
    assert link.x_range[1] >= 120
    link.fit(0.1)
    assert link.x_range[0] == pytest.approx(120 - 119 * 0.1)
    link.zoom(30.1, 30.2)
    assert link.x_range[1] - link.x_range[0] == pytest.approx(2.0)


def test_all_plots_share_range_and_cursor(ppo, grid, qtbot):
    history = history_of(ppo)
    grid.set_run("ppo", history)
    score, kl = drawn(grid, qtbot, "Score"), drawn(grid, qtbot, "KL")
    QTest.mouseMove(score._canvas._view.viewport(), where(score, 20))
    qtbot.waitUntil(lambda: grid.link.cursor is not None)
    assert round(grid.link.cursor) == 20
    assert kl._canvas._cursor._x is not None
    assert "at rollout 20" in kl._unit.text()
    assert kl._value.text() == f"{history.lines['objective/kl'].at(20)[1]:.2f}"
    grid.link.zoom(10, 30)
    near = pytest.approx((10, 30), abs=0.6)
    qtbot.waitUntil(lambda: kl._canvas._x_range == near and score._canvas._x_range == near)
    assert grid.fit.isEnabled()


def where(card, step):
    canvas = card._canvas
    area = canvas._area()
    return QPoint(round(canvas._x_pixel(step, area)), round(area.center().y()))


def test_a_click_asks_for_the_samples_of_the_nearest_step(ppo, grid, qtbot):
    grid.set_run("ppo", history_of(ppo))
    card = drawn(grid, qtbot)
    with qtbot.waitSignal(grid.step_chosen) as asked:
        qtbot.mouseClick(card._canvas._view.viewport(), Qt.MouseButton.LeftButton, pos=where(card, 25))
    assert asked.args == [25]


def test_dragging_zooms_double_click_fits_and_only_ctrl_and_the_wheel_zooms(ppo, grid, qtbot):
    grid.set_run("ppo", history_of(ppo))
    card = drawn(grid, qtbot)
    port = card._canvas._view.viewport()
    qtbot.mousePress(port, Qt.MouseButton.LeftButton, pos=where(card, 10))
    qtbot.mouseMove(port, where(card, 20))
    qtbot.mouseMove(port, where(card, 30))
    qtbot.mouseRelease(port, Qt.MouseButton.LeftButton, pos=where(card, 30))
    assert grid.link.x_range == pytest.approx((10, 30), abs=0.3)
    qtbot.mouseDClick(port, Qt.MouseButton.LeftButton, pos=where(card, 20))
    assert grid.link.follow
    before = grid.link.x_range
    wheel(port, Qt.KeyboardModifier.NoModifier)
    assert grid.link.x_range == before
    wheel(port, Qt.KeyboardModifier.ControlModifier)
    assert grid.link.x_range[1] - grid.link.x_range[0] < before[1] - before[0]


def wheel(port, keys):
    at = QPointF(port.rect().center())
    spot = QPointF(port.mapToGlobal(at.toPoint()))
    button, phase = Qt.MouseButton.NoButton, Qt.ScrollPhase.NoScrollPhase
    event = QWheelEvent(at, spot, QPoint(0, 0), QPoint(0, 120), button, keys, phase, False)
    QApplication.sendEvent(port, event)


def test_a_plot_can_be_read_by_keyboard_alone(ppo, grid, qtbot):
    grid.set_run("ppo", history_of(ppo))
    card = drawn(grid, qtbot)
    card.setFocus()
    qtbot.keyClick(card, Qt.Key.Key_Right)
    assert grid.link.cursor == 40
    qtbot.keyClick(card, Qt.Key.Key_Left)
    assert grid.link.cursor == 39
    assert card.accessibleDescription().startswith("rollout 39: train ")
    with qtbot.waitSignal(grid.step_chosen) as asked:
        qtbot.keyClick(card, Qt.Key.Key_Return)
    assert asked.args == [39]
    for key in (Qt.Key.Key_Plus, Qt.Key.Key_Minus, Qt.Key.Key_Home, Qt.Key.Key_End):
        qtbot.keyClick(card, key)
    assert not grid.link.follow
    qtbot.keyClick(card, Qt.Key.Key_0)
    assert grid.link.follow
    qtbot.keyClick(card, Qt.Key.Key_Escape)
    assert grid.link.cursor is None


def test_every_control_has_an_accessible_name(ppo, grid, qtbot):
    grid.set_run("ppo", history_of(ppo))
    drawn(grid, qtbot)
    for widget in grid.findChildren(QWidget):
        if widget.focusPolicy() != Qt.FocusPolicy.NoFocus and widget.isVisible():
            text = widget.accessibleName() or getattr(widget, "text", lambda: "")()
            assert text, f"{widget!r} {widget.objectName()}"


# ---- options ----


def test_smoothing_draws_the_average_with_the_raw_line_behind(ppo, grid, qtbot):
    grid.set_run("ppo", history_of(ppo))
    card = drawn(grid, qtbot)
    assert "objective/scores raw" not in card._canvas._curves
    grid._smooth.setValue(60)
    qtbot.waitUntil(lambda: "objective/scores raw" in card._canvas._curves)
    raw, smooth = card._canvas._curves["objective/scores raw"], card._canvas._curves["objective/scores"]
    assert np.abs(np.diff(smooth.yData)).sum() < np.abs(np.diff(raw.yData)).sum()
    assert raw.zValue() < smooth.zValue()
    assert "eval_objective/scores raw" not in card._canvas._curves  # a mean already
    grid._smooth.setValue(0)
    qtbot.waitUntil(lambda: "objective/scores raw" not in card._canvas._curves)


def test_the_log_scale_is_used_where_all_values_are_positive(script, grid, qtbot):
    run = script("sft")
    run.start()
    run.steps(1, 20)
    history = history_of(run)
    grid.set_run("sft", history)
    card = drawn(grid, qtbot, "Loss")
    grid.log.setChecked(True)
    qtbot.waitUntil(lambda: card.is_log)
    assert card._canvas._curves["loss"].yData[0] == pytest.approx(math.log10(history.lines["loss"].y[0]))
    assert card._scale.isVisible()


def test_a_plot_with_values_below_zero_stays_linear(ppo, grid, qtbot):
    grid.set_run("ppo", history_of(ppo))
    card = drawn(grid, qtbot, "Reward")
    grid.log.setChecked(True)
    qtbot.waitUntil(lambda: not card.dirty)
    assert not card.is_log


def test_a_second_run_lies_behind(ppo, script, grid, qtbot):
    other = script("ppo", seed=9)
    other.start()
    other.steps(1, 60)
    grid.set_run("ppo", history_of(ppo))
    card = drawn(grid, qtbot)
    grid.set_overlay_choices([("other", "ppo 9")])
    grid.overlay.setCurrentIndex(1)
    with qtbot.waitSignal(grid.overlay_wanted) as wanted:
        grid.overlay.activated.emit(1)
    assert wanted.args == ["other"]
    grid.set_overlay(history_of(other), "ppo 9")
    qtbot.waitUntil(lambda: "objective/scores other" in card._canvas._curves)
    assert grid.link.x_range[1] >= 60
    assert any(entry.name == "ppo 9" for entry in card._key._entries)
    grid.set_overlay(None)
    qtbot.waitUntil(lambda: "objective/scores other" not in card._canvas._curves)


def test_checkpoints_resumes_and_nan_are_marked(ppo, grid, qtbot):
    history = history_of(ppo)
    history.marks += [Mark(16, "resume"), Mark(30, "diverged")]
    grid.set_run("ppo", history)
    marks = drawn(grid, qtbot)._canvas._marks
    assert list(marks["checkpoints"].xData) == [8, 8]
    assert list(marks["resumes"].xData) == [16, 16]
    assert list(marks["diverged"].xData) == [30, 30]


def test_a_gap_in_a_line_is_no_line(grid, qtbot):
    history = RunHistory()
    y = np.array([1.0, np.nan, 3.0, 4.0])
    history.apply(Batch(points={"objective/scores": (np.arange(4.0), y)}))
    grid.set_run("ppo", history)
    curve = drawn(grid, qtbot)._canvas._curves["objective/scores"]
    assert curve.opts["connect"] == "finite"


def test_the_theme_recolours_the_plots(ppo, grid, qtbot, theme):
    grid.set_run("ppo", history_of(ppo))
    card = drawn(grid, qtbot)
    light = card.grab().toImage().pixelColor(card.width() - 30, card.height() - 60)
    theme.set_mode("dark")
    grid.mark_dirty()
    qtbot.waitUntil(lambda: not card.dirty)
    dark = card.grab().toImage().pixelColor(card.width() - 30, card.height() - 60)
    assert light.lightness() > 200
    assert dark.lightness() < 60
    assert card._canvas._curves["objective/scores"].opts["pen"].color().name() == DARK.series(0)


# ---- export ----


def test_png_svg_and_csv_are_written(ppo, grid, qtbot, tmp_path):
    history = history_of(ppo)
    grid.set_run("ppo", history, "ppo 3")
    card = drawn(grid, qtbot, "KL")
    with qtbot.waitSignals([grid.exported] * 3):
        grid.export(tmp_path / "kl.png", "png", card)
        grid.export(tmp_path / "kl.svg", "svg", card)
        grid.export(tmp_path / "kl.csv", "csv", card)
    image = QImage(str(tmp_path / "kl.png"))
    assert image.width() == 2 * card.width()
    tree = ElementTree.parse(tmp_path / "kl.svg")
    texts = " ".join(one.text or "" for one in tree.iter() if one.tag.endswith("text"))
    assert "KL" in texts
    lines = (tmp_path / "kl.csv").read_text().splitlines()
    assert lines[0] == "step,objective/kl,eval_objective/kl"
    assert len(lines) == 41
    assert float(lines[1].split(",")[1]) == history.lines["objective/kl"].y[0]
    assert lines[1].endswith(",")


def test_all_plots_are_exported_together(ppo, grid, qtbot, tmp_path):
    grid.set_run("ppo", history_of(ppo))
    drawn(grid, qtbot)
    with qtbot.waitSignal(grid.exported):
        grid.export(tmp_path / "all.png", "png")
    with qtbot.waitSignal(grid.exported):
        grid.export(tmp_path / "all.csv", "csv")
    header = (tmp_path / "all.csv").read_text().splitlines()[0].split(",")
    assert {"objective/scores", "perf/memory_bytes", "policy/clipfrac_avg"} <= set(header)
    assert QImage(str(tmp_path / "all.png")).height() > 1000


def test_an_export_that_cannot_be_written_says_so(ppo, grid, qtbot, tmp_path):
    grid.set_run("ppo", history_of(ppo))
    card = drawn(grid, qtbot)
    for kind in ("png", "csv"):
        with qtbot.waitSignal(grid.failed) as failed:
            grid.export(tmp_path / "missing" / f"x.{kind}", kind, card)
        assert isinstance(failed.args[0], UserError)
    grid.set_run("ppo", RunHistory())
    with qtbot.waitSignal(grid.failed):
        grid.export(tmp_path / "x.png", "png")


def test_numbers_in_a_csv_lose_nothing(tmp_path):
    history = RunHistory()
    history.apply(Batch(points={"loss": (np.array([1.0, 2.0, 1_234_567.0]), np.array([0.1 + 0.2, 1e-17, math.nan]))}))
    history.apply(Batch(points={"eval_loss": (np.array([2.0]), np.array([3.0]))}))
    count = save_csv(columns_of(history, ["loss", "eval_loss", "unknown"]), tmp_path / "x.csv")
    assert count == 3
    assert (tmp_path / "x.csv").read_text().splitlines() == [
        "step,loss,eval_loss",
        "1,0.30000000000000004,",
        "2,1e-17,3.0",
        "1234567,nan,",
    ]


def test_the_numbers_of_a_long_run_are_written_off_the_windows_thread(grid, qtbot, tmp_path, monkeypatch):
    writers = []
    write = plot_grid.save_csv

    def save(columns, path):
        writers.append(threading.current_thread())
        return write(columns, path)

    monkeypatch.setattr(plot_grid, "save_csv", save)
    history = RunHistory()
    history.apply(Batch(points={"loss": (np.arange(1.0, 6.0), np.ones(5))}))
    grid.set_run("sft", history)
    with qtbot.waitSignal(grid.exported):
        grid.export(tmp_path / "x.csv", "csv", plot(grid, "Loss"))
        history.apply(Batch(points={"loss": (np.array([6.0]), np.ones(1))}))  # the run goes on
    assert writers != [threading.current_thread()]
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 6


def test_the_numbers_of_a_plot_can_be_read_as_a_table(ppo, grid, qtbot, qtmodeltester):
    history = history_of(ppo)
    grid.set_run("ppo", history)
    card = drawn(grid, qtbot, "KL")
    card.menu_wanted.emit(card)
    menu = next(one for one in grid.findChildren(QMenu) if one.isVisible())
    menu.actions()[0].trigger()
    menu.close()
    dialog = grid.findChild(PlotTableDialog)
    model = dialog.table.model()
    qtmodeltester.check(model)
    assert [model.headerData(n, Qt.Orientation.Horizontal) for n in range(3)] == ["rollout", "train", "validation"]
    assert model.index(0, 0).data() == "40"
    assert model.index(0, 1).data() == f"{history.last('objective/kl')[1]:.2f}"
    assert model.index(1, 2).data() == ""  # nothing was measured at step 39
    dialog.accept()
    qtmodeltester.check(PlotTable(RunHistory(), card.looks))


def test_the_box_of_second_runs_says_what_is_behind_and_is_not_filled_anew_under_the_hand(grid, ppo, qtbot):
    grid.set_run("ppo", history_of(ppo))
    grid.set_overlay_choices([("other", "ppo 9"), ("third", "ppo 3")])
    grid.overlay.setCurrentIndex(1)
    with qtbot.assertNotEmitted(grid.overlay.model().rowsInserted):
        grid.set_overlay_choices([("other", "ppo 9"), ("third", "ppo 3")])
    assert grid.overlay.currentData() == "other"
    grid.set_run("ppo", RunHistory())
    assert grid.overlay.currentText() == "No second run"


def test_a_second_run_that_is_deleted_is_taken_from_behind(grid, ppo, qtbot):
    grid.set_run("ppo", history_of(ppo))
    grid.set_overlay_choices([("other", "ppo 9"), ("third", "ppo 3")])
    grid.overlay.setCurrentIndex(1)
    with qtbot.waitSignal(grid.overlay_wanted) as wanted:
        grid.set_overlay_choices([("third", "ppo 3")])
    assert wanted.args == [""]
