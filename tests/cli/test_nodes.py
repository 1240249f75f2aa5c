"""zenos node, and what both clients say of nodes."""

from __future__ import annotations

import pytest

import zenos as package
from tests.cli.conftest import Daemon, until, zenos
from zenos.core.errors import InvalidError, NotFoundError
from zenos.core.home import Home


def test_cordon_drain_and_uncordon(daemon: Daemon) -> None:
    assert zenos("node", "cordon", "local").err == "local is cordoned: nothing new starts\n"
    listed = zenos("node", "list").out
    assert "local (cordoned)" in listed
    assert "local (cordoned)" in zenos("status").out
    task = zenos("submit", "--", "work").out.strip()
    assert "node local is cordoned" in zenos("ps").out
    assert "zenos node uncordon local" in zenos("why", task).out
    assert zenos("node", "drain", "local", "--json").json[0]["node"]["cordon"] == "drain"
    # What is wrong with one doesn't keep the others from it.
    mixed = zenos("node", "uncordon", "nowhere", "local")
    assert (mixed.code, "cannot find the node 'nowhere'" in mixed.err) == (3, True)
    until(lambda: daemon.state(task) == "running")
    assert zenos("node", "list", "--json").json[0]["node"]["cordon"] is None
    with package.connect(home=Home.default().root) as made:
        assert made.drain("local").node.cordon == "drain"
        assert made.cordon("local").node.cordon == "cordon"
        assert made.uncordon("local").node.takes_work
        with pytest.raises(NotFoundError, match="cannot find the node"):
            made.cordon("nowhere")
        with pytest.raises(InvalidError, match="cannot use the node name"):
            made.drain("../x")
    assert [row["action"] for row in zenos("audit", "--json").json][:3] == [
        "cordon",
        "uncordon",
        "cordon",
    ]
