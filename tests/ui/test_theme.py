from __future__ import annotations

import pytest
from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication

from ui import icons
from ui.theme import DARK, LIGHT, TEXT_SIZES, Colours, Theme, colours, font, palette_of, style_sheet

BOTH = pytest.mark.parametrize("theme_", [LIGHT, DARK], ids=["light", "dark"])


def luminance(colour: str) -> float:
    def part(value: float) -> float:
        return value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4

    ink = QColor(colour)
    return 0.2126 * part(ink.redF()) + 0.7152 * part(ink.greenF()) + 0.0722 * part(ink.blueF())


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@BOTH
@pytest.mark.parametrize("ink", ["text", "muted", "accent", "good", "warn", "bad"])
@pytest.mark.parametrize("ground", ["window", "surface"])
def test_text_reaches_wcag_aa_on_window_and_surface(theme_: Colours, ink: str, ground: str) -> None:
    assert contrast(getattr(theme_, ink), getattr(theme_, ground)) >= 4.5


@BOTH
@pytest.mark.parametrize("kind", ["good", "warn", "bad", "accent", "neutral"])
def test_a_pill_can_be_read_on_its_own_ground(theme_: Colours, kind: str) -> None:
    assert contrast(*theme_.tone(kind)) >= 4.5


@BOTH
def test_what_takes_input_has_an_edge_of_three_to_one_and_a_button_can_be_read(theme_: Colours) -> None:
    assert contrast(theme_.border_strong, theme_.surface) >= 3
    assert contrast(theme_.border_strong, theme_.window) >= 2.9
    assert contrast(theme_.on_accent, theme_.accent_fill) >= 4.5
    assert contrast(theme_.text, theme_.accent_soft) >= 4.5
    assert contrast(theme_.muted, theme_.accent_soft) >= 4.5
    assert contrast(theme_.text, theme_.trained) >= 4.5


@BOTH
def test_lines_of_a_plot_differ_and_stand_out_from_the_surface(theme_: Colours) -> None:
    assert len(set(theme_.lines)) == len(theme_.lines) == 8
    assert all(contrast(line, theme_.surface) >= 3 for line in theme_.lines)
    assert theme_.series(8) == theme_.series(0)


@BOTH
def test_the_style_sheet_has_no_place_left_to_fill_in(theme_: Colours) -> None:
    sheet = style_sheet(theme_)
    assert "@" not in sheet
    assert len(sheet.splitlines()) < 120


def test_the_system_theme_follows_the_system(qapp: QApplication, monkeypatch: pytest.MonkeyPatch) -> None:
    theme = Theme(qapp, "system")
    seen: list[str] = []
    theme.changed.connect(lambda: seen.append(theme.colours.name))
    hints = qapp.styleHints()
    monkeypatch.setattr(type(hints), "colorScheme", lambda _self: Qt.ColorScheme.Dark)
    hints.colorSchemeChanged.emit(Qt.ColorScheme.Dark)
    assert seen == ["dark"]
    assert colours().dark
    theme.set_mode("light")
    hints.colorSchemeChanged.emit(Qt.ColorScheme.Dark)  # a chosen theme does not follow
    assert seen == ["dark", "light"]
    assert not colours().dark
    theme.deleteLater()


def test_the_text_size_scales_every_role(theme: Theme) -> None:
    before = {role: font(role).pointSizeF() for role in ("body", "title", "small", "mono")}  # type: ignore[arg-type]
    theme.set_text_size("larger")
    assert all(font(role).pointSizeF() > size for role, size in before.items())  # type: ignore[arg-type]
    theme.set_text_size("normal")
    assert {role: font(role).pointSizeF() for role in before} == before  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        theme.set_text_size("huge")
    assert theme.text_size in TEXT_SIZES


def test_disabled_text_is_another_colour(theme: Theme) -> None:
    palette = palette_of(LIGHT)
    group = QPalette.ColorGroup
    role = QPalette.ColorRole.ButtonText
    assert palette.color(group.Disabled, role) != palette.color(group.Active, role)


def test_every_icon_draws_something_in_the_colour_that_is_asked_for(theme: Theme) -> None:
    assert len(icons.names()) >= 25
    fixed = {"arrow-down", "arrow-up", "mark"}  # of the style sheet, which cannot recolour
    for name in set(icons.names()) - fixed:
        image = icons.pixmap(name, 24, "#ff0000", 2.0).toImage()
        assert image.size() == QSize(48, 48)
        inked = [image.pixelColor(x, y) for x in range(48) for y in range(48) if image.pixelColor(x, y).alpha() > 200]
        assert inked, name
        assert all(pixel.red() > 200 and pixel.green() < 60 for pixel in inked), name


def test_an_icon_has_a_disabled_face_and_an_unknown_one_is_an_error(theme: Theme) -> None:
    made = icons.icon("close", "#123456")
    assert made.availableSizes()
    with pytest.raises(FileNotFoundError):
        icons.icon("no-such-icon")
