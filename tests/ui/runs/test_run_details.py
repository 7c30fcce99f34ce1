import pytest
from PySide6.QtCore import QEvent, QPoint, Qt
from PySide6.QtGui import QHelpEvent
from PySide6.QtWidgets import QApplication

from ui.log_view import LogTail, LogView, clean
from ui.plain_text import VIEW_LIMIT
from ui.recipe_view import RecipeView
from ui.run_acts import response_of
from ui.samples_model import SamplesModel, length_of
from ui.samples_view import SamplesView
from ui.token_text import FIRST_TOKENS, MEASURES, TokenText, measures_of, scale_of, strength
from ui.widgets import sentence
from workbench.protocol import Noted, Sample, SampleBatch, Warned
from workbench.records import RunRecord
from workbench.run_folder import RunFolder


def batches_of(run):
    return [event for event in run.folder.events() if isinstance(event, SampleBatch)]


@pytest.fixture
def samples(qtbot, theme):
    made = SamplesView()
    qtbot.addWidget(made)
    made.resize(900, 700)
    with qtbot.waitExposed(made):
        made.show()
    return made


@pytest.fixture
def ppo(script):
    run = script("ppo")
    run.start()
    for step in (4, 8, 12):
        run.samples(step, 6)
    return run


# ---- samples ----


def test_the_newest_samples_are_shown_with_score_kl_length_and_ending(ppo, samples, qtbot):
    samples.set_run(ppo.folder)
    samples.set_batches(batches_of(ppo))
    with qtbot.waitSignal(samples.step_shown) as shown:
        pass
    assert shown.args == [12]
    assert samples.model.rowCount() == 6
    sample = samples.model.sample(0)
    assert samples._score.text() == f"Score {sample.score:.3g}" or samples._score.text().startswith("Score ")
    assert samples._kl.text().startswith("KL ")
    assert samples._length.text() == f"{len(sample.tokens)} tokens"
    assert samples._end.text() == "ended by EOS"
    assert samples.text.toPlainText() == sample.response
    assert samples._prompt.text() == sample.prompt
    assert "mean score" in samples._summary.text()
    assert "5 of 6 ended by EOS" in samples._summary.text()


def test_new_samples_are_followed_until_another_step_is_picked(ppo, samples, qtbot, settle):
    samples.set_run(ppo.folder)
    with qtbot.waitSignal(samples.step_shown):
        samples.set_batches(batches_of(ppo))
    ppo.samples(16)
    with qtbot.waitSignal(samples.step_shown) as shown:
        samples.set_batches(batches_of(ppo))
    assert shown.args == [16]
    with qtbot.waitSignal(samples.step_shown):
        samples.back.click()
    assert samples.step() == 12
    assert not samples.latest.isChecked()
    ppo.samples(20)
    samples.table.setCurrentIndex(samples.model.index(3, 0))
    with qtbot.assertNotEmitted(samples.model.modelReset):
        samples.set_batches(batches_of(ppo))
        settle()
    assert samples.step() == 12
    assert samples.table.currentIndex().row() == 3
    with qtbot.waitSignal(samples.step_shown):
        samples.latest.click()
    assert samples.step() == 20
    assert samples.latest.isChecked()
    assert not samples.on.isEnabled()


def test_the_shown_step_is_read_again_when_it_has_more_samples(ppo, samples, qtbot):
    samples.set_run(ppo.folder)
    with qtbot.waitSignal(samples.step_shown):
        samples.set_batches(batches_of(ppo))
    ppo.samples(12, 3)
    with qtbot.waitSignal(samples.step_shown):
        samples.set_batches(batches_of(ppo))
    assert samples.model.rowCount() == 9


def test_a_point_of_a_plot_leads_to_the_nearest_step_with_samples(ppo, samples, qtbot):
    samples.set_run(ppo.folder)
    samples.set_batches(batches_of(ppo))
    for asked, shown in ((5, 4), (6, 8), (99, 12)):
        samples.show_step(asked)
        assert samples.step() == shown


def test_nothing_is_read_while_nobody_looks(ppo, samples, qtbot):
    samples.hide()
    samples.set_run(ppo.folder)
    samples.set_batches(batches_of(ppo))
    assert samples._loaded == -1
    with qtbot.waitSignal(samples.step_shown):
        samples.show()


def test_a_run_without_samples_says_when_there_will_be_some(script, samples):
    samples.set_run(script("sft").folder)
    samples.set_batches([])
    assert samples._empty.isVisible()


def test_samples_of_other_methods_have_no_token_numbers(script, samples, qtbot):
    run = script("sft")
    run.start()
    run.samples(5)
    samples.set_run(run.folder)
    with qtbot.waitSignal(samples.step_shown):
        samples.set_batches(batches_of(run))
    assert not samples.measure.isVisible()
    assert samples._score.text() == "No score"
    assert samples.text.toPlainText() == samples.model.sample(0).response
    assert samples.model.index(0, 0).data() == "–"


def test_tokens_are_coloured_by_the_chosen_number_and_named_in_words(ppo, samples, qtbot):
    samples.set_run(ppo.folder)
    with qtbot.waitSignal(samples.step_shown):
        samples.set_batches(batches_of(ppo))
    assert samples.measure.currentText() == "KL"
    assert [samples.measure.itemText(i) for i in range(samples.measure.count())] == [
        "Nothing",
        *(one.name for one in MEASURES),
    ]
    assert samples._extremes.text().startswith("Largest KL: “")
    samples.measure.setCurrentText("Reward")
    samples.measure.activated.emit(samples.measure.currentIndex())
    assert samples._extremes.text().startswith("Largest Reward: “")
    assert samples.scale.isVisible()
    samples.measure.setCurrentIndex(0)
    samples.measure.activated.emit(0)
    assert samples._extremes.text() == ""
    assert not samples.scale.isVisible()


def test_chosen_samples_are_sent_to_be_ranked(ppo, samples, qtbot):
    samples.set_run(ppo.folder)
    with qtbot.waitSignal(samples.step_shown):
        samples.set_batches(batches_of(ppo))
    samples.table.selectAll()
    with qtbot.waitSignal(samples.to_rank) as sent:
        samples._rank.click()
    assert len(sent.args[0]) == 6


def test_the_scored_responses_of_a_reward_run_are_in_the_project_already(script, samples, qtbot):
    run = script("reward")
    run.start()
    run.samples(4, 2)
    samples.set_run(run.folder, "reward")
    with qtbot.waitSignal(samples.step_shown):
        samples.set_batches(batches_of(run))
    assert not samples._rank.isVisible()
    samples.set_run(run.folder, "dpo")
    samples.set_batches(batches_of(run))
    assert samples._rank.isVisible()


def test_a_sample_becomes_a_response_that_says_where_it_came_from(ppo):
    sample = ppo.sample(12, 3)
    made = response_of(sample, RunRecord("r", "ppo", "ppo 3", "done", "m"), None)
    assert (made.prompt_id, made.text, made.finish_reason) == ("p3", sample.response, "length")
    assert made.source == "ppo 3, rollout 12"
    assert made.token_count == len(sample.tokens)


def test_the_table_sorts_by_every_column(ppo, qtmodeltester, samples):
    model = SamplesModel()
    qtmodeltester.check(model)
    model.set_samples([ppo.sample(1, index) for index in range(8)])
    qtmodeltester.check(model)
    for column, key in ((0, lambda s: s.score), (1, lambda s: s.kl), (2, length_of)):
        model.sort(column, Qt.SortOrder.DescendingOrder)
        values = [key(one) for one in model.samples()]
        assert values == sorted(values, reverse=True)
    keep = model.index(2, 0)
    from PySide6.QtCore import QPersistentModelIndex

    held = QPersistentModelIndex(keep)
    sample = model.sample(2)
    model.sort(0, Qt.SortOrder.AscendingOrder)
    assert model.sample(held.row()) is sample
    assert model.index(0, 3).data(Qt.ItemDataRole.AccessibleTextRole) in ("End: EOS", "End: cut off")
    assert model.headerData(0, Qt.Orientation.Vertical) is None
    assert "nats" in model.headerData(1, Qt.Orientation.Horizontal, Qt.ItemDataRole.ToolTipRole)


# ---- tokens ----


@pytest.fixture
def text(qtbot, theme):
    made = TokenText()
    qtbot.addWidget(made)
    made.resize(500, 200)
    made.show()
    return made


def token_sample(**values):
    tokens = ("Walk", " ten", " min", "utes", ".")
    return Sample(step=1, prompt_id="p", prompt="?", response="".join(tokens), tokens=tokens, **values)


def grounds(text):
    block = text.document().firstBlock()
    found = []
    iterator = block.begin()
    while not iterator.atEnd():
        fragment = iterator.fragment()
        brush = fragment.charFormat().background()
        found.append((fragment.text(), brush.color().name() if brush.style() != Qt.BrushStyle.NoBrush else ""))
        iterator += 1
    return found


def test_the_strongest_token_has_the_strongest_ground(text):
    sample = token_sample(token_kl=(0.0, 0.1, -0.4, 0.8, 0.0))
    text.show_sample(sample, measures_of(sample)[0])
    shown = dict(grounds(text))
    assert shown["utes"]
    assert shown[" min"]
    assert shown["utes"] != shown[" min"]  # the two ends of the scale differ in hue
    assert shown["Walk"] == ""
    assert text.extremes(2) == [("utes", 0.8), (" min", -0.4)]
    assert text.token_at(0) == 0
    assert text.token_at(len("Walk ten mi")) == 2
    assert text.token_at(999) == -1


def test_pointing_at_a_token_tells_its_number(text, qtbot):
    from PySide6.QtWidgets import QToolTip

    sample = token_sample(token_kl=(0.0, 0.1, -0.4, 0.8, 0.0))
    text.show_sample(sample, measures_of(sample)[0])
    cursor = text.textCursor()
    cursor.setPosition(len("Walk ten minut"))
    at = text.cursorRect(cursor).center()
    QApplication.sendEvent(text, QHelpEvent(QEvent.Type.ToolTip, at, text.mapToGlobal(at)))
    assert "KL 0.800 nats" in QToolTip.text()
    text.show_sample(sample, None)
    QApplication.sendEvent(text, QHelpEvent(QEvent.Type.ToolTip, QPoint(1, 1), QPoint(1, 1)))


def test_numbers_that_do_not_fit_the_tokens_are_not_offered():
    assert measures_of(token_sample(token_kl=(0.1,))) == []
    assert measures_of(Sample(step=1, prompt_id="p", prompt="?", response="x")) == []


def test_text_of_a_model_is_never_markup_and_an_empty_response_says_so(text):
    text.show_sample(Sample(step=1, prompt_id="p", prompt="?", response="<b>x</b>\u202e"), None)
    assert text.toPlainText() == "<b>x</b>⟦RLO⟧"
    text.show_sample(Sample(step=1, prompt_id="p", prompt="?", response=""), None)
    assert text.toPlainText() == "(empty)"
    text.show_sample(None, None)
    assert text.toPlainText() == ""


def test_one_outlier_does_not_take_the_colour_from_the_rest():
    values = [0.1] * 99 + [50.0]
    assert scale_of(values) == pytest.approx(0.1)
    assert strength(0.1, scale_of(values)) == pytest.approx(1.0)
    assert scale_of([]) == 1.0
    assert scale_of([0.0]) == 1.0
    assert strength(float("nan"), 1.0) == 0.0


# ---- log ----


def test_the_log_grows_and_shows_the_last_state_of_a_progress_bar(tmp_path):
    path = tmp_path / "engine.log"
    tail = LogTail(path)
    assert tail.read_new() == ""
    path.write_bytes(b"one\n\x1b[32mgreen\x1b[0m\n 10%\r 50%\r100%\nhalf a li")
    assert tail.read_new() == "one\ngreen\n100%\n"
    with path.open("ab") as log:
        log.write(b"ne\n")
    assert tail.read_new() == "half a line\n"
    path.write_bytes(b"set aside\n")
    assert tail.read_new() == "set aside\n"
    assert clean("a\r\nb") == "a\nb"


def test_only_the_end_of_a_huge_log_is_read(tmp_path):
    path = tmp_path / "engine.log"
    path.write_bytes(b"x" * 79 + b"\n" + (b"y" * 79 + b"\n") * 200_000)
    first = LogTail(path).read_new()
    assert len(first) <= 64 * 1024 + 1
    assert "x" not in first


def test_the_log_is_read_while_it_is_seen(tmp_path, qtbot, theme):
    path = tmp_path / "engine.log"
    path.write_text("first\n")
    view = LogView()
    qtbot.addWidget(view)
    view.set_log(path)
    assert view.view.toPlainText() == ""
    view.show()
    qtbot.waitUntil(lambda: "first" in view.view.toPlainText())
    with path.open("a") as log:
        log.write("second <b>not bold</b>\n")
    qtbot.waitUntil(lambda: "second <b>not bold</b>" in view.view.toPlainText())
    view.search.setText("first")
    view.search.returnPressed.emit()
    assert view.view.textCursor().selectedText() == "first"
    assert not view.follow.isChecked()
    with qtbot.waitSignal(view.copied):
        view._on_copy()
    assert QApplication.clipboard().text().startswith("first")
    view.hide()
    assert not view._timer.isActive()


def test_warnings_stand_above_the_log(qtbot, theme):
    view = LogView()
    qtbot.addWidget(view)
    view.show()
    view.set_warnings([Warned(code="oom", message=f"number {index}", remedy="wait") for index in range(10)])
    names = [one.accessibleName() for one in view.warnings.children() if hasattr(one, "accessibleName")]
    assert "Warning: number 9. wait" in names
    assert "Warning: number 1. wait" not in names
    assert view.warnings.isVisible()
    view.set_warnings([])
    assert not view.warnings.isVisible()


# ---- recipe ----


def test_the_recipe_shows_every_setting_the_models_and_the_data(script, qtbot, theme):
    run = script("ppo", kl_coefficient=0.2)
    view = RecipeView()
    qtbot.addWidget(view)
    view.resize(900, 700)
    view.show()
    view.set_spec(run.spec)
    from ui.widgets import Text

    texts = {one.text() for one in view.findChildren(Text)}
    assert "● KL coefficient" in texts
    assert "0.2" in texts
    assert {"Starts from", "tiny base", "Scored by", "reward 1", "train.jsonl", "torch"} <= texts
    assert any(
        one.accessibleName() == "KL coefficient: 0.2, changed from the default" for one in view.findChildren(Text)
    )
    with qtbot.waitSignal(view.again):
        view.again.emit()
    view.set_spec(None)


def test_what_the_memory_plan_chose_is_said_to_be_its_and_a_digest_fits_the_page(script, qtbot, theme):
    import msgspec

    from ui.widgets import Text

    run = script("ppo", micro_batch=6)
    model = msgspec.structs.replace(run.spec.model, base_sha256="0f" * 32)
    view = RecipeView()
    qtbot.addWidget(view)
    view.resize(800, 700)
    view.set_spec(msgspec.structs.replace(run.spec, automatic=("micro_batch",), model=model))
    view.show()
    texts = {one.text() for one in view.findChildren(Text)}
    assert "● Micro-batch" not in texts
    assert any(text.startswith("Chosen by the memory plan. Rows held") for text in texts)
    assert "0f" * 16 + "\n" + "0f" * 16 in texts
    assert view._page.minimumSizeHint().width() <= 800


def test_sentences_begin_and_end_as_such():
    assert sentence("resume it") == "Resume it."
    assert sentence("Really?") == "Really?"
    assert sentence("Wait…") == "Wait…"
    assert sentence("") == ""


def test_a_rule_is_named_as_what_scores(script, qtbot, theme):
    import msgspec

    run = script("ppo", rule="shorter-than:40")
    spec = msgspec.structs.replace(RunFolder(run.path).spec(), reward=None)
    view = RecipeView()
    qtbot.addWidget(view)
    view.set_spec(spec)
    view.show()
    from ui.widgets import Text

    assert "the rule shorter-than:40" in {one.text() for one in view.findChildren(Text)}


def test_a_long_response_is_shown_by_its_beginning_and_whole_when_asked(samples, script, qtbot):
    count = 5000
    tokens = tuple(f"w{index} " for index in range(count))
    kl = (*([0.0] * (count - 1)), 1.0)
    long = Sample(step=1, prompt_id="p", prompt="?", response="".join(tokens), tokens=tokens, token_kl=kl)
    samples.set_run(script("ppo").folder)
    samples.model.set_samples([long])
    samples._stack.setCurrentIndex(1)
    samples.table.setCurrentIndex(samples.model.index(0, 0))
    assert len(samples.text._ends) == FIRST_TOKENS
    assert samples.whole.text() == "Show all (4,500 more tokens)"
    assert samples.whole.isVisible()
    samples.whole.click()
    assert not samples.whole.isVisible()
    qtbot.waitUntil(lambda: samples.text.toPlainText() == long.response, timeout=20_000)
    assert samples.text.token_at(len(long.response) - 2) == count - 1


def test_a_long_response_without_token_numbers_says_how_much_is_left(text):
    text.show_sample(Sample(step=1, prompt_id="p", prompt="?", response="word " * 10_000), None)
    assert len(text.toPlainText()) == VIEW_LIMIT
    assert text.hidden() == "30,000 more characters"
    text.show_all()
    assert len(text.toPlainText()) == 50_000
    assert text.hidden() == ""


def test_what_a_run_says_of_its_memory_stands_above_the_log_and_is_no_warning(qtbot, theme):
    view = LogView()
    qtbot.addWidget(view)
    view.show()
    view.set_notes(
        [Noted(code="plan", message="Chosen by the memory plan: micro-batches of 4 of the 8 rows of a batch")]
    )
    assert view.notes.isVisible()
    assert view.notes.text() == "Chosen by the memory plan: micro-batches of 4 of the 8 rows of a batch."
    assert not view.warnings.isVisible()
    view.set_log(None)
    assert not view.notes.isVisible()
