"""What can be done with a prompt beside writing its demonstration: tags, split, ranking, archive."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QPoint, Qt
from PySide6.QtWidgets import QInputDialog, QMenu, QWidget

from ui.context import Context
from ui.operations import bind_future
from ui.prompt_dialog import tags_of
from workbench.records import Prompt, Split


def open_prompt_menu(
    owner: QWidget, at: QPoint, context: Context, prompt: Prompt, archive: Callable[[Prompt], None]
) -> None:
    """Show the menu at a point of the screen; ``archive`` is called with the prompt when that is chosen."""
    writable = not context.read_only
    other: Split = "train" if prompt.split == "held-out" else "held-out"
    menu = QMenu(owner)
    menu.setObjectName("prompt-menu")
    menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)

    def add(text: str, act: Callable[[], object], enabled: bool = True) -> None:
        made = menu.addAction(text)
        made.triggered.connect(lambda _checked=False: act())
        made.setEnabled(enabled)

    add("Edit tags…", lambda: ask_for_tags(owner, context, prompt), writable)
    add(f"Move to {other}", lambda: bind_future(context.store.set_split([prompt.id], other), owner=owner), writable)
    add("Rank its responses", lambda: context.navigate("rank", prompt_id=prompt.id))
    menu.addSeparator()
    add("Archive (out of sight and out of training)", lambda: archive(prompt), writable)
    menu.popup(at)


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
