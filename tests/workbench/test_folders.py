from __future__ import annotations

import os
import stat
from pathlib import Path

import platformdirs
import pytest

from workbench import folders
from workbench.errors import UserError


@pytest.fixture(autouse=True)
def no_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TASTEMAKER_CACHE", "TASTEMAKER_CONFIG", "TASTEMAKER_RUNTIME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_cache_and_configuration_follow_their_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TASTEMAKER_CONFIG", str(tmp_path / "config"))
    assert folders.cache_dir() == tmp_path / "cache"
    assert folders.models_cache_dir() == tmp_path / "cache" / "models"
    assert folders.config_dir() == tmp_path / "config"
    assert (tmp_path / "cache" / "models").is_dir()
    assert mode(tmp_path / "config") == 0o700


def test_without_variables_the_platform_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda app: tmp_path / "c" / app)
    monkeypatch.setattr(platformdirs, "user_config_path", lambda app: tmp_path / "k" / app)
    assert folders.cache_dir() == tmp_path / "c" / "tastemaker"
    assert folders.config_dir() == tmp_path / "k" / "tastemaker"


def test_the_runtime_folder_is_private_and_beside_those_of_other_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert folders.runtime_dir() == tmp_path / "tastemaker"
    assert mode(tmp_path / "tastemaker") == 0o700


def test_without_a_session_the_runtime_folder_is_under_tmp_by_user(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(folders, "_made", lambda path: made.append(path) or tmp_path)
    monkeypatch.setattr(folders.Path, "lstat", lambda _: os.lstat(tmp_path))
    assert folders.runtime_dir() == Path(f"/tmp/tastemaker-{os.getuid()}") == made[0]


def test_a_runtime_folder_open_to_others_is_closed_to_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    assert mode(folders.runtime_dir()) == 0o700


def test_a_runtime_folder_that_is_a_link_or_another_users_is_refused(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "link"))
    with pytest.raises(UserError, match="cannot be trusted"):
        folders.runtime_dir()
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "real"))
    uid = os.getuid()
    monkeypatch.setattr(folders.os, "getuid", lambda: uid + 1)
    with pytest.raises(UserError, match="another user"):
        folders.runtime_dir()


def test_a_folder_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TASTEMAKER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cannot be made"):
        folders.cache_dir()


@pytest.mark.parametrize(
    ("mounts", "warned"),
    [
        ("/dev/sda / ext4 rw", False),
        ("/dev/sda / ext4 rw\nserver:/x /home nfs4 rw", True),
        ("/dev/sda / ext4 rw\nserver:/x /home/me/my\\040work cifs rw", True),
        ("server:/x / nfs rw\n/dev/sda /home ext4 rw", False),
        ("/dev/sda / ext4 rw\nsshfs /home fuse.sshfs rw", True),
        ("/dev/sda / ext4 rw\n/dev/sdb /home fuse.fuseblk rw", False),
        ("nonsense", False),
    ],
)
def test_network_file_systems_are_warned_of_by_the_nearest_mount(mounts, warned):
    assert bool(folders.folder_warning(Path("/home/me/my work/project"), mounts)) == warned


@pytest.mark.parametrize("name", ["Dropbox", "OneDrive - Contoso", "Google Drive", "Nextcloud"])
def test_synced_folders_are_warned_of_by_name(tmp_path, name):
    assert name in folders.folder_warning(tmp_path / name / "project", "")
    assert folders.folder_warning(tmp_path / "mega-lomania" / "p", "") != ""
    assert folders.folder_warning(tmp_path / "omega" / "p", "") == ""


def test_a_folder_under_syncthing_is_warned_of(tmp_path):
    (tmp_path / ".stfolder").mkdir()
    assert "Syncthing" in folders.folder_warning(tmp_path / "a" / "b")


def test_mounts_that_cannot_be_read_warn_of_nothing(monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise PermissionError

    monkeypatch.setattr(folders.Path, "read_text", refuse)
    assert folders.folder_warning(tmp_path) == ""
