"""The daemon's own parts: its address, its token, its home."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from pathlib import Path

import pytest

from zenos.core.config import Config
from zenos.core.errors import ConflictError, InvalidError, RefusedError, StorageError
from zenos.core.home import Home
from zenos.daemon import claim, listen, read_or_make_token, read_settings


async def test_answers_are_sent_without_nagles_delay() -> None:
    with listen(Config(port=0)) as listener:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer: socket.socket = writer.get_extra_info("socket")
            accepted.set_result(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(connected, sock=listener)
        async with server:
            _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            assert await accepted
            writer.close()
            await writer.wait_closed()


def test_a_taken_port_is_a_clear_error() -> None:
    with listen(Config(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConflictError, match=rf"cannot listen on 127\.0\.0\.1:{port}.*--port"):
            listen(Config(port=port))


def test_other_addresses_need_the_word() -> None:
    everywhere = str(ipaddress.IPv4Address(0))
    with pytest.raises(RefusedError, match=r"cannot listen on 0\.0\.0\.0 without TLS"):
        listen(Config(host=everywhere, port=0))
    listen(Config(host=everywhere, port=0, public=True)).close()


def test_a_host_that_does_not_exist_is_a_clear_error() -> None:
    for host in ("no such host", "a..b", "a" * 64, "\udcff"):
        with pytest.raises(InvalidError, match="cannot resolve the host"):
            listen(Config(host=host, port=0))


def test_a_home_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="its name is not UTF-8; choose another"):
        claim(Home(tmp_path / "\udcff"))
    assert list(tmp_path.iterdir()) == []


def test_the_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    claim(home).close()
    token = read_or_make_token(home)
    assert len(token) >= 32
    assert home.token.stat().st_mode & 0o777 == 0o600
    home.token.chmod(0o644)
    assert read_or_make_token(home) == token
    assert home.token.stat().st_mode & 0o777 == 0o600


def test_a_token_that_anyone_could_guess_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.token.write_text("abc")
    with pytest.raises(InvalidError, match="cannot use the token"):
        read_or_make_token(home)


@pytest.mark.parametrize("content", [b"\xff" * 40, b"a" * 20 + b" " + b"b" * 20, b"\0" * 40])
def test_a_damaged_token_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    home = Home(tmp_path)
    home.token.write_bytes(content)
    with pytest.raises(InvalidError, match=r"cannot use the token .* delete it"):
        read_or_make_token(home)


def test_a_home_has_one_daemon(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with (
        claim(home),
        pytest.raises(ConflictError, match="cannot start: a daemon runs on"),
    ):
        claim(home)
    claim(home).close()


def test_a_home_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot use the home .* ZENOS_HOME"):
        claim(Home(tmp_path / "file" / "home"))


@pytest.mark.parametrize("text", ["- a list", "a: [", "\0"])
def test_a_settings_file_that_is_no_mapping_is_a_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "zenos.yaml"
    path.write_text(text)
    with pytest.raises(InvalidError, match="cannot read"):
        read_settings(path)
    path.write_text("")
    assert read_settings(path) == {}
