"""Where the daemon is: arguments, else `ZENOS_HOST` and `ZENOS_TOKEN`, else what its home says.

Inside a task of that daemon its programs ask with the task's own token, so on behalf of its user.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from zenos.core.addresses import to_ask
from zenos.core.errors import InvalidError, NoDaemonError, StorageError, UnauthorizedError
from zenos.core.holding import holder
from zenos.core.home import Home, given
from zenos.core.inside import Inside, bearer, inside, parse, secret
from zenos.core.names import TOKEN_PREFIX
from zenos.core.wording import FieldError

PORT_DEFAULT = 8642


class DaemonFile(msgspec.Struct, frozen=True, kw_only=True):
    """`daemon.json` in the home: the process that runs there, and its address."""

    pid: int
    start_time: float
    url: str
    host: str = ""
    port: int = 0
    version: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        return start_time(self.pid) == self.start_time


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where to send requests, and with which token. daemon: the local one, if it is that.

    token_from: `given`, `ZENOS_TOKEN`, the path of the file, or `task ID`. home: of the local
    daemon.
    """

    url: str
    token: str
    daemon: DaemonFile | None = None
    token_from: str = "given"  # noqa: S105 - no password
    home: str | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine (then no proxy stands in between)."""
        host = urlsplit(self.url).hostname or ""
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def find(
    host: str | None = None, token: str | None = None, home: str | Path | None = None
) -> Address:
    """The daemon's address; NoDaemonError where none runs, InvalidError for a bad `host`.

    An empty host or token is one that somebody failed to find out, and never means another.
    """
    for what, value in (("host", host), ("token", token)):
        if value is not None and not value.strip():
            raise FieldError(f"cannot use an empty {what}: give one, or leave it out", what)
    if host is None and home is None:
        host = given("ZENOS_HOST")
    place = Home.of(home) if home is not None else Home.default(elsewhere=host is not None)
    if host:
        url, daemon = url_of(host), None
    else:
        daemon = read_daemon_file(place)
        if daemon is None and (pid := holder(place)) is not None:
            daemon = read_daemon_file(place)  # it may have come just now
            if daemon is None:
                raise NoDaemonError(_unfindable(place, pid))
        if daemon is None or not daemon.is_alive:
            raise NoDaemonError(
                f"cannot reach a daemon: none runs on {place.root}; start it with 'zenos up'"
            )
        url = daemon.url
    found, source = _token(token, place, inside(place) if home is None and not host else None)
    root = None if daemon is None else str(place.root)
    return Address(url=url, token=found, daemon=daemon, token_from=source, home=root)


def _unfindable(place: Home, pid: int) -> str:
    """Of a daemon that has the home, and whose address nobody knows."""
    how = "is damaged" if place.daemon.exists() else "is not there"
    return (
        f"cannot reach the daemon on {place.root}: it is process {pid}, but {place.daemon} {how}; "
        "it writes that anew within seconds, unless it is starting or ending: try again, or end "
        f"it (kill {pid})"
    )


def url_of(host: str) -> str:
    """The base address from `host`, `host:port` or `http://host:port`."""
    import httpx  # only where an address is given: it takes as long to import as all of this

    text = host.strip()
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
        # As it is read on the way out: what has no such form can be no host.
        spoken = httpx.URL(parts.geturl())
        _ = spoken.host, spoken.raw_host.decode().encode("idna")
    except (ValueError, httpx.InvalidURL):
        raise InvalidError(f"cannot use the address {host!r}: write HOST or HOST:PORT") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise InvalidError(
            f"cannot use the address {host!r}: write HOST, HOST:PORT or https://HOST"
        )
    asked = to_ask(parts.hostname)
    name = f"[{asked}]" if ":" in asked else asked
    if port is None and "://" not in text:
        port = PORT_DEFAULT
    return (
        f"{parts.scheme}://{name}{f':{port}' if port is not None else ''}{parts.path.rstrip('/')}"
    )


def wrong_token(address: Address) -> str:
    """What to do about a token that the daemon doesn't know, by where the token came from."""
    file = Path(address.home) / "token" if address.home is not None else None
    of_home = "the file 'token' in its home" if file is None else str(file)
    cannot = f"cannot get in at {address.url}:"
    if address.token.startswith(TOKEN_PREFIX):
        which = {"given": "the token given", "ZENOS_TOKEN": "the token in ZENOS_TOKEN"}
        return (
            f"{cannot} {which.get(address.token_from, address.token_from)} is a user's, which was "
            "revoked, or is of another daemon; ask whoever runs this one for another"
        )
    task = parse(address.token)
    if task is not None:
        return (
            f"{cannot} task {task[0].task} has ended there, or was started again since; set "
            "ZENOS_TOKEN to a token"
        )
    if address.token_from == "ZENOS_TOKEN":  # noqa: S105 - the variable's name
        instead = f"set it to what stands in {of_home}"
        unset = "unset it, or " if file is not None else ""
        return f"{cannot} ZENOS_TOKEN is set to another token than that daemon's; {unset}{instead}"
    if address.token_from == "given":  # noqa: S105 - no password
        return f"{cannot} the token given is not that daemon's, which stands in {of_home}"
    if file is None:
        return (
            f"{cannot} the token in {address.token_from} is not that daemon's; set ZENOS_TOKEN to "
            f"what stands in {of_home}"
        )
    return (
        f"{cannot} the token in {address.token_from} has changed since the daemon was started; end "
        f"the daemon (kill {address.daemon.pid if address.daemon else 'it'}) and type 'zenos up'"
    )


def _token(said: str | None, place: Home, task: Inside | None) -> tuple[str, str]:
    """The token, and where it came from: see `Address.token_from`. task: as which it may ask."""
    token, source = said, "given"
    if token is None:
        token, source = given("ZENOS_TOKEN"), "ZENOS_TOKEN"
    if token is None and task is not None:
        try:
            return bearer(task, secret(place, *task)), f"task {task.task}"
        except FileNotFoundError:
            raise UnauthorizedError(
                f"cannot act for task {task.task}: it is not known any more on {place.root}; set "
                "ZENOS_TOKEN to a token"
            ) from None
    if token is None:
        source = str(place.token)
        try:
            token = place.token.read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            raise UnauthorizedError(
                f"cannot find the token: set ZENOS_TOKEN, or ZENOS_HOME to the daemon's home "
                f"({place.token} is not there)"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"cannot read {place.token}: {error}") from None
    if not token.isascii() or not token.isprintable() or " " in token:
        shown = "the token given" if source == "given" else f"the token of {source}"
        raise InvalidError(f"cannot use {shown}: it has characters that no token has")
    return token, source


def read_daemon_file(home: Home) -> DaemonFile | None:
    """What the home says of its daemon; None when there is no such file, or a damaged one.

    A power cut or a full disk may leave a damaged one; a daemon that runs writes it anew, and so
    does the next.
    """
    try:
        return msgspec.json.decode(home.daemon.read_bytes(), type=DaemonFile)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"cannot read {home.daemon}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def start_time(pid: int) -> float | None:
    """When a process was started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The second field is the program's name in parentheses and may contain anything.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else float(fields[19])
