"""The menu of flags: + and - are thumbs, digits mark one response, letters mark all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection

from PySide6.QtCore import QEvent, QPoint, Qt
from PySide6.QtWidgets import QMenu

from workbench.records import ALL_BAD, BAD, FLAGS, GOOD


class _Menu(QMenu):
    """A menu that keeps its keys: the pane's own digits would otherwise come first."""

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ShortcutOverride:
            event.accept()
            return True
        return super().event(event)


def open_flag_menu(
    at: QPoint,
    letter: str,
    response_id: str,
    flags: Collection[tuple[str, str]],
    on_flag: Callable[[str, str, bool], None],
) -> QMenu:
    """Show the menu above a point.

    Args:
        at: lower left corner, in the screen's coordinates.
        letter: the focused response's name.
        response_id: its id.
        flags: what is set, as (response id or "" for all, flag).
        on_flag: called with (response id or "", flag, on or off).

    Returns:
        The menu, which the caller keeps until it is closed.
    """
    menu = _Menu()
    menu.setObjectName("flag-menu")
    menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)

    def add(text: str, whose: str, flag: str) -> None:
        act = menu.addAction(text)
        act.setCheckable(True)
        act.setChecked((whose, flag) in flags)
        act.triggered.connect(lambda on: on_flag(whose, flag, on))

    add(f"&+   {letter} is good: thumbs up", response_id, GOOD)
    add(f"&-   {letter} is bad: thumbs down", response_id, BAD)
    menu.addSeparator()
    for index, flag in enumerate((flag for flag in FLAGS if flag != ALL_BAD), 1):
        add(f"&{index}   {letter} is {flag}", response_id, flag)
    menu.addSeparator()
    for flag in FLAGS:
        add("All are &bad" if flag == ALL_BAD else f"All are &{flag}", "", flag)
    menu.popup(at - QPoint(0, menu.sizeHint().height()))
    menu.setActiveAction(menu.actions()[0])
    return menu
