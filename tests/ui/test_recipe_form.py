import dataclasses

import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QWheelEvent
from PySide6.QtWidgets import QApplication, QCheckBox, QComboBox, QLineEdit, QWidget

from ui.recipe_form import GROUP_ORDER, RecipeForm, label_of, range_of
from ui.setting_editors import text_of
from workbench.recipes import RECIPES, DpoRecipe, PpoRecipe, SftRecipe, preset
from workbench.settings_fields import Problem, settings_of


@pytest.fixture
def form(qtbot, theme):
    made = RecipeForm()
    qtbot.addWidget(made)
    made.resize(900, 800)
    made.show()
    made.heard = []
    made.edited.connect(made.heard.append)
    return made


def editor(form, name):
    return form.findChild(QWidget, f"setting-{name}")


def type_into(qtbot, line, text):
    line.setFocus()
    line.selectAll()
    qtbot.keyClicks(line, text)


@pytest.mark.parametrize("method", RECIPES)
def test_every_setting_of_every_method_has_an_editor_a_name_and_a_meaning(form, method):
    recipe = RECIPES[method]()
    form.set_recipe(recipe)
    for setting in settings_of(type(recipe)):
        widget = editor(form, setting.name)
        assert widget is not None
        assert widget.accessibleName() == label_of(setting)
        assert setting.help in widget.accessibleDescription()
        assert f"Default {text_of(setting.default) or 'empty'}" in widget.accessibleDescription()
        assert setting.group in GROUP_ORDER
    assert form.recipe() == recipe
    assert form.changed_fields() == []


def test_editors_fit_the_type(form):
    form.set_recipe(DpoRecipe())
    assert isinstance(editor(form, "gradient_checkpointing"), QCheckBox)
    assert isinstance(editor(form, "loss_type"), QComboBox)
    assert isinstance(editor(form, "beta"), QLineEdit)
    assert editor(form, "learning_rate").text() == "2e-5"


def test_typing_a_value_changes_the_recipe_and_marks_the_field(form, qtbot):
    form.set_recipe(DpoRecipe())
    type_into(qtbot, editor(form, "beta"), "0.25")
    assert form.recipe() == dataclasses.replace(DpoRecipe(), beta=0.25)
    assert form.heard[-1].beta == 0.25
    assert form.changed_fields() == ["beta"]
    assert form.rows["beta"]._reset.isVisible()


def test_reset_sets_a_field_back_to_the_preset_and_not_to_the_default(form, qtbot):
    standard = preset("ppo", "Thorough", 100)
    form.set_recipe(standard, standard, "Thorough")
    assert "Thorough 4096" in editor(form, "episodes").accessibleDescription()
    type_into(qtbot, editor(form, "episodes"), "999")
    qtbot.mouseClick(form.rows["episodes"]._reset, Qt.MouseButton.LeftButton)
    assert form.recipe() == standard
    assert editor(form, "episodes").text() == "4096"
    assert form.changed_fields() == []


def test_reset_all_sets_everything_back(form, qtbot):
    form.set_recipe(SftRecipe())
    type_into(qtbot, editor(form, "epochs"), "7")
    editor(form, "schedule").setCurrentText("cosine")
    editor(form, "gradient_checkpointing").click()
    assert sorted(form.changed_fields()) == ["epochs", "gradient_checkpointing", "schedule"]
    form.reset_all()
    assert form.recipe() == SftRecipe()
    assert form.heard[-1] == SftRecipe()


def test_text_that_is_no_number_is_a_problem_beside_the_field_and_keeps_the_last_sound_value(form, qtbot):
    form.set_recipe(SftRecipe())
    type_into(qtbot, editor(form, "batch"), "many")
    assert form.recipe().batch == SftRecipe().batch
    assert [one.field for one in form.unreadable()] == ["batch"]
    assert "'many' is not a whole number: 1 to 65536." in form.rows["batch"].problem_text()
    form.show_problems([])  # what the plan says does not hide it
    assert form.rows["batch"].problem_text()
    type_into(qtbot, editor(form, "batch"), "16")
    assert form.recipe().batch == 16
    assert form.unreadable() == []
    assert form.rows["batch"].problem_text() == ""


def test_infinity_and_nan_are_no_values(form, qtbot):
    form.set_recipe(SftRecipe())
    for text in ("nan", "inf"):
        type_into(qtbot, editor(form, "learning_rate"), text)
        assert form.unreadable()
    assert form.recipe() == SftRecipe()


def test_problems_stand_beside_their_field_errors_first(form):
    form.set_recipe(PpoRecipe())
    form.show_problems(
        [
            Problem("mini_batches", "32 episodes do not split into 5", "choose a divisor of batch"),
            Problem("mini_batches", "a warning", "", "warning"),
            Problem("data", "no prompts"),
        ]
    )
    assert form.rows["mini_batches"].problem_text() == "32 episodes do not split into 5: choose a divisor of batch."
    assert "do not split" in editor(form, "mini_batches").accessibleDescription()
    form.show_problems([])
    assert form.rows["mini_batches"].problem_text() == ""


def test_up_and_down_step_a_number_within_its_range(form, qtbot):
    form.set_recipe(SftRecipe())
    rank = editor(form, "lora_rank")
    qtbot.keyClick(rank, Qt.Key.Key_Up)
    assert form.recipe().lora_rank == 17
    rate = editor(form, "learning_rate")
    qtbot.keyClick(rate, Qt.Key.Key_Down)
    qtbot.keyClick(rate, Qt.Key.Key_Down)
    assert rate.text() == "9e-5"
    decay = editor(form, "weight_decay")
    qtbot.keyClick(decay, Qt.Key.Key_Down)
    assert form.recipe().weight_decay == 0


def test_the_wheel_never_changes_a_choice(form):
    form.set_recipe(SftRecipe())
    box = editor(form, "schedule")
    box.setFocus()
    where = QPointF(box.rect().center())
    wheel = QWheelEvent(
        where,
        QPointF(box.mapToGlobal(where.toPoint())),
        QPoint(0, 0),
        QPoint(0, -120),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(box, wheel)
    assert form.recipe().schedule == "linear"


def test_search_finds_by_name_and_meaning(form, qtbot):
    form.set_recipe(PpoRecipe())
    qtbot.keyClicks(form.search, "price of")
    assert [name for name, line in form.rows.items() if line.isVisible()] == ["kl_coefficient"]
    form.search.setText("nothing has this")
    assert form._nothing.isVisible()
    assert form.go_to("seed")
    assert form.search.text() == ""
    assert not form.go_to("no such")


def test_another_method_brings_its_own_settings(form):
    form.set_recipe(SftRecipe())
    form.set_recipe(DpoRecipe())
    assert "beta" in form.rows
    assert "train_on" not in form.rows


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2e-4, "2e-4"),
        (0.5, "0.5"),
        (1.0, "1"),
        (0.0, "0"),
        (True, "on"),
        (None, ""),
        (1e-8, "1e-8"),
        (1.5e-5, "1.5e-5"),
    ],
)
def test_values_are_written_as_they_are_typed(value, text):
    assert text_of(value) == text


def test_ranges_are_words():
    by_name = {one.name: one for one in settings_of(SftRecipe)}
    assert range_of(by_name["lora_rank"]) == "1 to 512"
    assert range_of(by_name["schedule"]) == "constant or linear or cosine"
    assert range_of(dataclasses.replace(by_name["lora_rank"], high=None)) == "at least 1"
    assert range_of(dataclasses.replace(by_name["lora_rank"], low=None)) == "at most 512"
    assert range_of(dataclasses.replace(by_name["lora_rank"], low=None, high=None)) == ""


def test_the_form_of_each_method_is_made_once(form):
    form.set_recipe(SftRecipe())
    first = form.rows["epochs"]
    form.set_recipe(DpoRecipe())
    assert not first.isVisible()
    assert form.rows["beta"].isVisible()
    form.search.setText("beta")
    form.set_recipe(SftRecipe(epochs=3))
    assert form.rows["epochs"] is first
    assert first.value == 3
    form.search.clear()
    assert first.isVisible()


def test_what_has_no_effect_is_locked_and_says_why_until_it_has_one(form):
    recipe = PpoRecipe(gamma=0.9)
    form.set_recipe(recipe, PpoRecipe())
    assert editor(form, "gamma").isEnabled()
    form.rows["advantage"].editor.box.setCurrentText("rloo")
    for name in ("gamma", "gae_lambda", "value_learning_rate", "value_clip_range", "value_coefficient"):
        assert not editor(form, name).isEnabled()
        assert "Only while Advantage is gae" in editor(form, name).accessibleDescription()
    assert editor(form, "clip_range").isEnabled()
    form.rows["gamma"].reset()  # a value from before can still be taken back
    assert form.recipe().gamma == 1.0
    form.rows["advantage"].editor.box.setCurrentText("gae")
    assert editor(form, "gamma").isEnabled()
    assert "Only while" not in editor(form, "gamma").accessibleDescription()


def test_a_narrow_form_has_name_editor_and_meaning_on_one_edge(form):
    form.set_recipe(DpoRecipe())
    form.set_narrow(True)
    QApplication.processEvents()
    line = form.rows["beta"]
    edges = {part.mapTo(line, QPoint(0, 0)).x() for part in (line._label, line.editor.widget, line._help)}
    assert len(edges) == 1
