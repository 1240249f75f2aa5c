"""Freezing by control group: what is written, and what is believed."""

from __future__ import annotations

from pathlib import Path

from zenos.workers.limits import Cgroups


def test_a_group_is_frozen_once_the_kernel_says_so(tmp_path: Path) -> None:
    groups = Cgroups(tmp_path, None, 2)
    group = tmp_path / "t1-1"
    group.mkdir()
    assert not groups.freeze("t1", 1, frozen=True)  # a kernel that has no freezer there
    (group / "cgroup.freeze").write_text("0")
    (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert groups.freeze("t1", 1, frozen=True)
    assert (group / "cgroup.freeze").read_text() == "1"
    assert not groups.is_frozen("t1", 1)
    (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert groups.is_frozen("t1", 1)
    assert groups.freeze("t1", 1, frozen=False)
    assert (group / "cgroup.freeze").read_text() == "0"
    assert not groups.freeze("t2", 1, frozen=True)
    assert not groups.is_frozen("t2", 1)


def test_where_there_are_no_groups_of_version_2_nothing_is_frozen_by_them(tmp_path: Path) -> None:
    (tmp_path / "t1-1").mkdir()
    (tmp_path / "t1-1" / "cgroup.freeze").write_text("0")
    for groups in (Cgroups(tmp_path, None, 1), Cgroups(None, None, 0)):
        assert not groups.freeze("t1", 1, frozen=True)
    assert (tmp_path / "t1-1" / "cgroup.freeze").read_text() == "0"
