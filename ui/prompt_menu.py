"""What can be done with a prompt beside writing its demonstration: tags, split, ranking, archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QInputDialog, QMenu, QWidget

from ui.context import Context
from ui.operations import bind_future
from ui.prompt_dialog import tags_of
from ui.widgets import plural
from workbench.records import Prompt, Split


def open_prompt_menu(
    owner: QWidget,
    at: QPoint,
    context: Context,
    prompt: Prompt,
    archive: Callable[[Prompt], None],
    write: Callable[[bool], None],
    *,
    labelled: bool,
) -> None:
    """Show the menu at a point of the screen.

    ``archive`` is called with the prompt when that is chosen; ``write`` when its words are to be edited: with True in
    place of it, with False (the only way once labels hang on the prompt) as a new prompt.
    """
    writable = not context.read_only
    other: Split = "train" if prompt.split == "held-out" else "held-out"
    menu = QMenu(owner)
    menu.setObjectName("prompt-menu")
    menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)

    menu.setToolTipsVisible(True)

    def add(text: str, act: Callable[[], object], enabled: bool = True) -> QAction:
        made = menu.addAction(text)
        made.triggered.connect(lambda _checked=False: act())
        made.setEnabled(enabled)
        return made

    edit = add("Edit…", lambda: write(True), writable and not labelled)
    edit.setToolTip("Labels hang on these words: duplicate the prompt to say it otherwise" if labelled else "")
    add("Duplicate as a new prompt…", lambda: write(False), writable)
    menu.addSeparator()
    add("Edit tags…", lambda: ask_for_tags(owner, context, prompt), writable)
    add(f"Move to {other}", lambda: move_to(owner, context, [prompt.id], other), writable)
    add("Rank its responses", lambda: context.navigate("rank", prompt_id=prompt.id))
    menu.addSeparator()
    add("Archive (out of sight and out of training)", lambda: archive(prompt), writable)
    menu.popup(at)


def move_to(owner: QWidget, context: Context, prompt_ids: Sequence[str], split: Split) -> None:
    """Move prompts to another split, and say so."""
    moved = f"{plural(len(prompt_ids), 'prompt')} {'held out' if split == 'held-out' else 'moved to train'}"
    bind_future(
        context.store.set_split(prompt_ids, split),
        lambda _: context.notify(f"{moved}; Edit > Undo takes it back.", "good"),
        context.show_error,
        owner=owner,
    )


def ask_for_tags(owner: QWidget, context: Context, prompt: Prompt) -> None:
    """Ask for the tags of a prompt, and save them."""
    dialog = QInputDialog(owner)
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    dialog.setWindowTitle("Tags")
    dialog.setLabelText("Tags, separated by commas")
    dialog.setTextValue(", ".join(prompt.tags))
    dialog.textValueSelected.connect(
        lambda text: bind_future(context.store.set_tags([prompt.id], tags_of(text)), owner=owner)
    )
    dialog.open()
