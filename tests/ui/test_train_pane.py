import json
import struct
import threading

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QApplication, QWidget

import ui.train_planner
from ui.checklist import Checklist
from ui.method_cards import MethodCards, labels_of
from ui.train_pane import TrainPane
from ui.train_parts import MemoryBar, ProblemList
from workbench.ids import new_id, now
from workbench.project import Project
from workbench.protocol import ModelRef, RunSpec
from workbench.records import METHODS, Counts, ModelRecord, RunRecord
from workbench.run_folder import RunFolder
from workbench.settings_fields import Problem


def safetensors(path, tensors):
    offset, header = 0, {}
    for name, shape in tensors.items():
        size = 2
        for one in shape:
            size *= one
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset))


def sound_base(folder):
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": (512, 64)})


def add_adapter(project, name, role, base_id):
    record = ModelRecord(new_id(), name, role, "", base_id=base_id, parent_id=base_id, created_at=now())
    folder = project.models_dir / record.id
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    safetensors(folder / "adapter_model.safetensors", {"base_model.model.score.weight": (1, 64)})
    (folder / "reward_stats.json").write_text("{}")
    record = ModelRecord(
        record.id, name, role, f"models/{record.id}", base_id=base_id, parent_id=base_id, created_at=now()
    )
    project.store.save_model(record).result(10)
    return record


@pytest.fixture
def pane(context, filled, qtbot, settle):
    sound_base(filled.project.path / "base-model")
    made = TrainPane(context)
    qtbot.addWidget(made)
    made.resize(1280, 800)
    made.show()
    made.activate()
    wait_for_plan(qtbot, made)
    settle()
    return made


def wait_for_plan(qtbot, pane):
    qtbot.waitUntil(lambda: pane.planner.current is not None, timeout=20_000)


def replan(qtbot, pane):
    qtbot.waitUntil(lambda: pane.planner.current is not None and not pane.planner._timer.isActive(), timeout=20_000)


def test_an_sft_plan_says_what_it_will_use_and_start_is_ready(pane, filled):
    assert pane.method == "sft"
    planned = pane.planner.current
    assert planned.plan.start.id == filled.base.id
    assert len(planned.plan.train) == 4
    assert pane.summary._train.text() == "4"
    assert "4 final demonstrations" in pane.summary._words.text()
    assert "free: fits" in pane.summary._memory.text()
    assert planned.plan.recipe.micro_batch == 0  # the form shows what was asked, the summary what was chosen
    assert pane.summary._chosen.text().startswith(f"Micro-batches of {planned.plan.settled.micro_batch} of the ")
    assert "without gradient checkpointing" in pane.summary._chosen.text()
    assert "free" not in pane.summary._chosen.text()  # the line above says it, in the same units
    assert planned.plan.estimate.choice.need.split(",")[0] in pane.summary._memory.text()
    assert pane.summary._time.text().startswith("about ")
    assert pane.summary.how.isEnabled()
    assert pane.start.isEnabled()
    assert pane._ready.text().startswith("Ready")
    assert pane.methods.cards["sft"].accessibleDescription().endswith("4 final demonstrations")


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_cut_off_in_a_narrow_window(pane, qtbot, method):
    pane.methods.choose(method)
    pane.advanced.setChecked(True)
    replan(qtbot, pane)  # the form has turned to the method
    scroll, page, one = pane._scroll, pane._scroll.widget(), pane.form.rows["learning_rate"]
    pane.resize(740, 520)  # what the narrowest window, 800 wide, leaves of it
    for seen in (
        lambda: page.minimumSizeHint().width() <= page.width() == scroll.viewport().width(),
        lambda: one._help.y() > one.editor.widget.geometry().bottom() > one._name.y(),
    ):
        qtbot.waitUntil(seen, timeout=20_000)
    pane.resize(1280, 800)
    qtbot.waitUntil(lambda: one._help.x() > one.editor.widget.geometry().right(), timeout=20_000)


def test_every_control_has_an_accessible_name(pane):
    pane.advanced.setChecked(True)
    for widget in pane.findChildren(QWidget):
        if widget.focusPolicy() != Qt.FocusPolicy.NoFocus and widget.isVisible() and widget.isEnabled():
            text = widget.accessibleName() or getattr(widget, "text", lambda: "")()
            assert text, f"{widget!r} {widget.objectName()}"


def test_ppo_without_a_reward_model_says_so_beside_the_field_and_does_not_start(pane, qtbot):
    pane.methods.choose("ppo")
    replan(qtbot, pane)
    assert not pane.start.isEnabled()
    assert "neither a reward model nor a rule" in pane.setup.notes["reward_model"].text()
    assert pane.setup.notes["reward_model"].isVisible()
    assert "Cannot start yet" in pane._ready.text()
    assert any(one.field == "reward_model" for one in pane.problems.problems())


def test_ppo_by_a_rule_needs_no_reward_model(pane, qtbot):
    pane.methods.choose("ppo")
    pane.setup.by_rule.setChecked(True)
    replan(qtbot, pane)
    assert pane.setup.notes["rule"].text() == "The rule is not written yet."
    pane.setup.rule.setFocus()
    qtbot.keyClicks(pane.setup.rule, "shorter-than:40")
    replan(qtbot, pane)
    assert pane.planner.current.plan.recipe.rule == "shorter-than:40"
    assert pane.planner.current.plan.reward is None
    assert pane.start.isEnabled()
    assert "rule=shorter-than:40" in pane.summary.command.view.text()
    pane.setup.by_model.setChecked(True)
    replan(qtbot, pane)
    assert pane.planner.current.plan.recipe.rule == ""


def test_ppo_starts_from_the_newest_sft_model_with_a_reward_model_of_the_same_base(pane, filled, qtbot, settle):
    sft = add_adapter(filled.project, "sft 1", "sft", filled.base.id)
    reward = add_adapter(filled.project, "reward 1", "reward", filled.base.id)
    settle()
    pane.methods.choose("ppo")
    qtbot.waitUntil(lambda: pane.planner.current is not None and pane.planner.current.plan.reward is not None)
    assert pane.planner.current.plan.start.id == sft.id
    assert pane.planner.current.plan.reward.id == reward.id


def test_only_sensible_roles_can_be_started_from(pane, filled, qtbot, settle):
    for name, role in (("sft 1", "sft"), ("reward 1", "reward"), ("dpo 1", "policy")):
        add_adapter(filled.project, name, role, filled.base.id)
    settle()
    qtbot.waitUntil(lambda: len(pane._picker().models()) == 2)
    assert {one.role for one in pane._picker().models()} == {"base", "sft"}
    pane.methods.choose("dpo")
    qtbot.waitUntil(lambda: {one.role for one in pane._picker().models()} == {"base", "sft", "policy"})


def test_a_changed_setting_is_in_the_plan_and_in_the_command(pane, qtbot):
    pane.advanced.setChecked(True)
    line = pane.findChild(QWidget, "setting-epochs")
    line.setFocus()
    line.selectAll()
    qtbot.keyClicks(line, "7")
    replan(qtbot, pane)
    assert pane.planner.current.plan.recipe.epochs == 7
    assert "--set epochs=7.0" in pane.summary.command.view.text()
    assert pane._changed.text() == "1 setting changed from Balanced"
    qtbot.mouseClick(pane._reset_all, Qt.MouseButton.LeftButton)
    replan(qtbot, pane)
    assert pane.planner.current.plan.recipe == pane.planner.current.standard


def test_changes_of_a_method_are_kept_while_another_is_looked_at(pane, qtbot):
    pane.advanced.setChecked(True)
    line = pane.findChild(QWidget, "setting-epochs")
    line.setFocus()
    line.selectAll()
    qtbot.keyClicks(line, "9")
    replan(qtbot, pane)
    pane.methods.choose("dpo")
    replan(qtbot, pane)
    assert pane.planner.current.plan.recipe.epochs != 9
    pane.methods.choose("sft")
    replan(qtbot, pane)
    assert pane.planner.current.plan.recipe.epochs == 9


def test_a_preset_is_resolved_against_the_labels(pane, qtbot):
    pane.setup.presets.choose("Quick look")
    replan(qtbot, pane)
    assert pane.planner.current.choice.preset == "Quick look"
    assert pane.planner.current.standard.epochs == 1.0
    assert pane.findChild(QWidget, "setting-epochs").text() == "1"


def test_a_fault_in_a_setting_stands_beside_it_and_leads_there(pane, qtbot):
    line = pane.findChild(QWidget, "setting-micro_batch")
    pane.go_to("micro_batch")
    line.selectAll()
    qtbot.keyClicks(line, "4000")
    replan(qtbot, pane)
    assert "larger than batch" in pane.form.rows["micro_batch"].problem_text()
    assert not pane.start.isEnabled()
    line.selectAll()
    qtbot.keyClicks(line, "x")
    assert "not a whole number" in pane._ready.text()
    pane.advanced.setChecked(False)
    pane.problems.chosen.emit("micro_batch")
    assert pane.advanced.isChecked()
    assert pane.focusWidget() is line


def test_start_starts_the_plan_and_goes_to_the_run(pane, qtbot, monkeypatch, said, settle):
    started = []

    def fake_start(project, plan):
        started.append(plan)
        return RunRecord("r1", plan.method, plan.name or "sft 1", "queued", plan.start.id)

    monkeypatch.setattr(ui.train_planner, "start_run", fake_start)
    pane.setup.run_name.setFocus()
    qtbot.keyClicks(pane.setup.run_name, "my first")
    replan(qtbot, pane)
    qtbot.mouseClick(pane.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: said.places == [("runs", {"run_id": "r1"})])
    assert started[0].name == "my first"
    assert ("my first started", "good") in said.notices
    assert pane.setup.run_name.text() == ""


def test_what_the_idle_engine_holds_is_planned_with_and_it_leaves_before_the_run_starts(pane, qtbot, monkeypatch):
    told = []
    plan_run = ui.train_planner.plan_run

    def planned(*given, **more):
        told.append(more["leaving"])
        return plan_run(*given, **more)

    def fake_start(project, plan):
        told.append("started")
        return RunRecord("r1", plan.method, "sft 1", "queued", plan.start.id)

    monkeypatch.setattr(ui.train_planner, "plan_run", planned)
    monkeypatch.setattr(ui.train_planner, "start_run", fake_start)
    engine = pane._context.engine
    monkeypatch.setattr(engine, "release", lambda: told.append("left"))
    engine.idle_process = 41
    pane.planner.refresh()
    replan(qtbot, pane)
    qtbot.mouseClick(pane.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "started" in told)
    assert told[:3] == [41, "left", "started"]


def test_a_start_that_fails_says_why_and_can_be_tried_again(pane, qtbot, monkeypatch):
    from workbench.errors import UserError

    def broken(project, plan):
        raise UserError("The run could not be started", "the disk is full", "free some space")

    monkeypatch.setattr(ui.train_planner, "start_run", broken)
    qtbot.mouseClick(pane.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(pane.banner.isVisible)
    assert "disk is full" in pane.banner.more.text()
    assert pane.start.isEnabled()


def test_new_labels_bring_a_new_plan(pane, filled, qtbot):
    from workbench.records import Demonstration

    made = Demonstration(new_id(), filled.prompts[5].id, "A new answer.", "me", "final")
    filled.project.store.save_demonstration(made).result(10)
    qtbot.waitUntil(lambda: pane.planner.current is not None and len(pane.planner.current.plan.train) == 5)
    assert pane.summary._train.text() == "5"


def test_an_empty_project_says_what_is_missing(make_context, empty_project, qtbot):
    pane = TrainPane(make_context(empty_project))
    qtbot.addWidget(pane)
    pane.show()
    pane.activate()
    wait_for_plan(qtbot, pane)
    assert not pane.start.isEnabled()
    assert {one.field for one in pane.problems.problems()} >= {"start_model", "data"}
    assert pane.setup.notes["start_model"].isVisible()


def test_a_read_only_project_cannot_start(make_context, filled, qtbot):
    sound_base(filled.project.path / "base-model")
    path = filled.project.path
    filled.project.close()
    project = Project.open(path, read_only=True)
    pane = TrainPane(make_context(project))
    qtbot.addWidget(pane)
    pane.show()
    pane.activate()
    wait_for_plan(qtbot, pane)
    assert any("reading only" in one.message for one in pane.problems.problems())
    project.close()


def test_the_command_is_copied(pane, qtbot, said):
    qtbot.mouseClick(pane.summary.command.copy, Qt.MouseButton.LeftButton)
    assert QGuiApplication.clipboard().text().startswith("tastemaker train ")
    assert ("The command was copied", "good") in said.notices


def test_the_window_can_ask_for_a_method_and_a_model(pane, filled, qtbot, settle, said):
    model = add_adapter(filled.project, "sft 1", "sft", filled.base.id)
    settle()
    pane.show_item(method="dpo", start_model_id=model.id)
    replan(qtbot, pane)
    assert pane.planner.current.plan.method == "dpo"
    assert pane.planner.current.plan.start.id == model.id
    assert pane.explain_stage() == "dpo"
    qtbot.mouseClick(pane._explain, Qt.MouseButton.LeftButton)
    assert said.explained == ["dpo"]


def test_arrow_keys_choose_the_method(pane, qtbot):
    pane.methods.cards["sft"].setFocus()
    qtbot.keyClick(pane.methods.cards["sft"], Qt.Key.Key_Right)
    assert pane.method == "reward"


def test_the_memory_bar_says_fits_tight_or_too_much(qtbot):
    bar = MemoryBar()
    qtbot.addWidget(bar)
    assert bar.show_need(1_000_000_000, 4_000_000_000) == "about 953.7 MiB of 3.7 GiB free: fits"
    assert bar.tone() == "good"
    bar.show_need(3_500_000_000, 4_000_000_000)
    assert bar.tone() == "warn"
    assert "more than is free" in bar.show_need(5_000_000_000, 4_000_000_000)
    assert bar.show_need(5_000_000_000, 0) == "about 4.7 GiB"
    assert bar.show_need(0, 0) == ""
    bar.grab()


def test_errors_are_listed_before_warnings(qtbot):
    listed = ProblemList()
    qtbot.addWidget(listed)
    listed.show_problems([Problem("a", "careful", "", "warning"), Problem("", "stop", "do this")])
    assert [one.message for one in listed.problems()] == ["stop", "careful"]
    listed.show_problems([])
    assert not listed.isVisible()


def test_cards_say_what_there_is():
    counts = Counts(prompts=3, demonstrations_final=1, pairs=1200, models={"reward": 1})
    assert labels_of("sft", counts) == "1 final demonstration"
    assert labels_of("dpo", counts) == "1,200 preference pairs"
    assert labels_of("ppo", counts) == "3 prompts, 1 reward model"
    assert labels_of("ppo", Counts()) == "No prompts yet, no reward model"


def test_the_card_of_kto_counts_thumbs_and_says_which_kind_is_missing():
    assert labels_of("kto", Counts(thumbs_up=1200, thumbs_down=5)) == "1,205 thumbs: 1,200 up, 5 down"
    assert labels_of("kto", Counts(thumbs_up=1)) == "1 thumb up, none down yet"
    assert labels_of("kto", Counts(thumbs_down=3)) == "3 thumbs down, none up yet"
    assert labels_of("kto", Counts()) == "No thumbs yet"
    assert labels_of("kto", Counts(pairs=6)) == "No thumbs yet, rankings can stand in"  # rankings_as_thumbs


def test_the_settings_of_an_earlier_run_are_taken_over(pane, filled, qtbot, settle, said):
    from dataclasses import asdict, replace

    from workbench.recipes import DpoRecipe

    recipe = replace(DpoRecipe(), beta=0.37, batch=2, micro_batch=2)
    model = ModelRef(model_id=filled.base.id, name="tiny base", base="/nowhere")
    settled = asdict(replace(recipe, head_rows=512))
    spec = RunSpec(run_id=new_id(), method="dpo", name="dpo 1", recipe=settled, automatic=("head_rows",), model=model)
    folder = RunFolder.create(filled.project.runs_dir, spec, [], [])
    pane.show_item(run_id=folder.path.name)
    qtbot.waitUntil(lambda: pane.method == "dpo" and pane.planner.current is not None, timeout=20_000)
    planned = pane.planner.current
    assert planned.plan.recipe == recipe
    assert planned.plan.start.id == filled.base.id
    assert "beta" in pane.form.changed_fields()
    assert any("dpo 1" in text for text, _ in said.notices)


def test_numbers_of_one_method_are_not_shown_for_another(pane, qtbot):
    assert pane.summary._train.text() == "4"
    pane.methods.choose("dpo")
    assert pane.summary._train.text() == "–"
    assert pane.summary.command.view.text() == ""
    assert not pane.start.isEnabled()
    replan(qtbot, pane)
    assert "pairs" in pane.summary._train_label.text()


def test_a_run_is_started_once_however_often_the_plan_is_made_meanwhile(pane, qtbot, monkeypatch):
    gate, started = threading.Event(), []

    def slow(project, plan):
        started.append(plan)
        gate.wait(20)
        return RunRecord(new_id(), "sft", "sft 1", "queued", "", created_at=now())

    monkeypatch.setattr(ui.train_planner, "start_run", slow)
    qtbot.mouseClick(pane.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: bool(started))
    pane.planner.refresh()
    replan(qtbot, pane)
    assert not pane.start.isEnabled()
    assert pane._ready.text() == "Starting…"
    pane.planner.start()
    gate.set()
    qtbot.waitUntil(lambda: not pane.planner.starting)
    replan(qtbot, pane)
    assert len(started) == 1
    assert pane.start.isEnabled()


def test_tags_narrow_what_trains_and_stand_in_the_command(pane, qtbot, filled, settle):
    assert pane.setup.tags.words.text() == "All prompts"
    qtbot.mouseClick(pane.setup.tags.pick, Qt.MouseButton.LeftButton)
    settle()
    sheet = pane.findChild(Checklist)
    line = next(i for i in range(sheet.list.count()) if sheet.list.item(i).text().startswith("science"))
    sheet.list.item(line).setCheckState(Qt.CheckState.Checked)
    qtbot.mouseClick(sheet.use, Qt.MouseButton.LeftButton)
    replan(qtbot, pane)
    plan = pane.planner.current.plan
    assert {row.prompt[-1].content for row in plan.train} == {filled.prompts[i].title for i in (0, 2)}
    assert plan.command_line.endswith("--tag science")
    assert "tagged science" in pane.summary._words.text()
    pane.setup.tags.all.click()
    replan(qtbot, pane)
    assert len(pane.planner.current.plan.train) == 4


def test_tags_that_no_label_has_are_said_beside_them(pane, qtbot):
    pane.setup.tags._take(["nothing"])
    replan(qtbot, pane)
    assert not pane.start.isEnabled()
    assert "has the tag nothing" in pane.setup.notes["tags"].text()
    pane.go_to("tags")
    assert pane.setup.tags.pick.hasFocus() or not pane.isActiveWindow()


def test_a_share_of_the_prompts_is_held_out_now(pane, qtbot, filled, settle, said):
    held = pane.setup.hold_out
    qtbot.waitUntil(lambda: held.words.text() == "2 of 12 prompts, 17%")
    assert not held.go.isEnabled()  # 10 % are held out already
    held.share.setValue(50)
    assert held.go.text() == "Hold out 4 more"
    qtbot.mouseClick(held.go, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: held.words.text() == "6 of 12 prompts, 50%", timeout=20_000)
    settle()
    assert not held.go.isEnabled()
    assert ("4 prompts held out; Edit > Undo takes it back.", "good") in said.notices
    replan(qtbot, pane)
    trained = {row.prompt for row in pane.planner.current.plan.train}
    kept = {one.messages for one in filled.project.store.prompts(split="held-out")}
    assert not trained & kept


def test_the_tags_of_an_earlier_run_are_taken_over(pane, filled, qtbot):
    model = ModelRef(model_id=filled.base.id, name="tiny base", base="/nowhere")
    spec = RunSpec(run_id=new_id(), method="sft", name="sft 1", recipe={}, model=model, tags=("science",))
    folder = RunFolder.create(filled.project.runs_dir, spec, [], [])
    pane.show_item(run_id=folder.path.name)
    qtbot.waitUntil(lambda: pane.planner.choice.tags == ("science",), timeout=20_000)
    assert pane.setup.tags.tags == ("science",)


@pytest.mark.parametrize(("width", "rows"), [(1120, [5]), (684, [3, 2]), (390, [2, 2, 1])])
def test_five_methods_stand_in_one_row_or_in_two_that_are_nearly_full(qtbot, theme, width, rows):
    cards = MethodCards()
    qtbot.addWidget(cards)
    cards.resize(width, 500)
    cards.show()
    QApplication.processEvents()
    tops = [card.y() for card in cards.cards.values()]
    assert [tops.count(top) for top in sorted(set(tops))] == rows
    assert all(card.width() >= 180 for card in cards.cards.values())
