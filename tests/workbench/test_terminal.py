"""What reaches the terminal: never a control sequence, and never an encoding error."""

import io
import json

import pytest

from workbench.terminal import Terminal

EVIL = "name\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202egnp"


def written(encoding: str, text: str, *, as_json: bool = False) -> bytes:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Terminal(json=as_json, stream=stream).result({"text": text}, text)
    stream.flush()
    return raw.getvalue()


def test_control_sequences_of_a_model_are_shown_and_not_obeyed() -> None:
    shown = written("utf-8", EVIL + "\nnext\tline").decode()
    assert shown == "name\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\x0d\\u202egnp\nnext\tline\n".replace("\\x0d", "\\r")


def test_a_progress_note_cannot_obey_either() -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Tty()
    Terminal(stream=stream).progress("adding", -1, "\x1b[2J")
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("text", ["雨とは 😀 é", EVIL, "file-\udcff"])
def test_json_is_the_same_text_in_every_encoding(encoding: str, text: str) -> None:
    raw = written(encoding, text, as_json=True)
    assert json.loads(raw.decode(encoding))["text"] == text
    assert not any(byte < 32 or 0x7F <= byte < 0xA0 for byte in raw.strip()) or encoding == "utf-8"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_text_that_the_encoding_lacks_is_escaped(encoding: str) -> None:
    assert written(encoding, "雨 \udcff").decode(encoding).endswith("\\udcff\n")
