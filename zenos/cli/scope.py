"""A systemd scope for the daemon, where its own control groups cannot be written.

A user's session gives its processes no groups of their own, but the user's systemd may: a scope
whose groups are delegated to whoever is in it. systemd-run makes one, enters it and becomes the
program, so that the process stays the one that was started.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zenos.core import cgroups

PROBE_S_MAX: Final = 3.0
LINGER: Final = Path("/var/lib/systemd/linger")
# In a scope as the daemon's would be: is the controller for memory there, and ours to give out?
PROBE: Final = (
    'own="$1$(sed -n s/^0:://p /proc/self/cgroup)" && '
    'grep -qw memory "$own/cgroup.controllers" && test -w "$own/cgroup.subtree_control"'
)


def prefix(enforcement: str, root: Path = cgroups.ROOT, linger: Path = LINGER) -> list[str]:
    """What stands before the daemon's command, so that its limits hold by cgroup; empty: nothing.

    1. Nothing where limits are not to be held by cgroups, or can be as it is.
    2. Nothing where the user's systemd ends with the last session: the daemon would end with it.
    3. Nothing unless systemd-run really makes such a scope, within PROBE_S_MAX seconds.
    """
    if enforcement == "watchdog" or cgroups.can_hold(root):  # 1
        return []
    program = shutil.which("systemd-run")
    if program is None or not (root / "cgroup.controllers").exists():
        return []
    try:  # 2
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name has no systemd
        return []
    if not (linger / user).exists():
        return []
    scope = [program, "--user", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--"]
    try:  # 3
        done = subprocess.run(
            [*scope, "/bin/sh", "-c", PROBE, "sh", str(root)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_S_MAX,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return scope if done.returncode == 0 else []


def enforcement_of(flags: Sequence[str]) -> str:
    """How limits shall hold, as far as flags and environment say."""
    said = os.environ.get("ZENOS_ENFORCEMENT", "auto")
    for flag in flags:
        name, _, value = flag.removeprefix("--set=").partition("=")
        said = value if name == "enforcement" else said
    return said
