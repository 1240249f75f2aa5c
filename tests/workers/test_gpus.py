"""Real GPUs, by a driver's library of our own making."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from tests.workers.conftest import program
from zenos.core.config import Config
from zenos.core.home import Home
from zenos.core.resources import Resources
from zenos.core.task import Allocation, Task
from zenos.workers import nodes, runs
from zenos.workers.limits import Cgroups

GIB = 2**30
# In the order of the PCI bus; CUDA by itself would put the fastest first.
CARDS = [("GPU-aa11", 8 * GIB), ("GPU-ab22", 24 * GIB), ("GPU-cc33", 80 * GIB)]


class Nvml(SimpleNamespace):
    """What we use of pynvml."""

    class NVMLError(Exception):
        pass

    def __init__(self, cards: list[tuple[str, int]], broken: str = "") -> None:
        super().__init__(cards=cards, broken=broken, open=0)

    def _call(self, name: str) -> None:
        if self.broken == name:
            raise self.NVMLError(name)

    def nvmlInit(self) -> None:
        self._call("init")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._call("count")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[str, int]:
        found: tuple[str, int] = self.cards[index]
        return found

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[str, int]) -> Any:
        return SimpleNamespace(total=handle[1])

    def nvmlDeviceGetUUID(self, handle: tuple[str, int]) -> str:
        return handle[0]


Driver = Callable[..., Nvml]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Puts a driver in place, and what the daemon's environment says of its GPUs."""

    def put(said: str | None = None, cards: Any = CARDS, broken: str = "") -> Nvml:
        nvml = Nvml(cards, broken)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if said is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
        nodes.device_numbers.cache_clear()
        return nvml

    monkeypatch.setattr(nodes, "device_numbers", nodes.device_numbers)
    yield put
    nodes.device_numbers.cache_clear()


def on(*devices: int) -> Task:
    """A task that holds these devices of the node."""
    shares = dict.fromkeys(devices, 1000)
    held = Allocation(node="local", resources=Resources.of(gpu=len(devices)), shares=shares)
    return replace(program("/bin/true"), allocation=held)


def seen(*devices: int) -> str:
    environment = runs.environment(Home(Path("/home/you/.zenos")), on(*devices))
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    return environment["CUDA_VISIBLE_DEVICES"]


def test_all_cards_are_given_out_by_their_numbers_on_the_bus(driver: Driver) -> None:
    nvml = driver()
    node = nodes.detect(Config(), Cgroups(None, None, 0))
    assert (node.gpus, node.virtual_gpus, node.gpu_memory_each) == (3, False, 8 * GIB)
    assert node.capacity.gpu == 3000
    assert seen(0) == "0"
    assert seen(2, 1) == "1,2"
    assert seen() == ""
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("said", "numbers"),
    [
        ("2,0", (2, 0)),
        ("1", (1,)),
        (" 1 , 2 ", (1, 2)),
        ("GPU-cc,GPU-aa11", (2, 0)),
        ("GPU-a", ()),  # two of them
        ("1,7,0", (1,)),  # what follows an unknown one doesn't count
        ("0,0", (0,)),
        ("-1", ()),
        ("", ()),
        ("MIG-12", ()),
    ],
)
def test_only_those_that_the_daemon_may_see(
    said: str, numbers: tuple[int, ...], driver: Driver
) -> None:
    driver(said)
    node = nodes.detect(Config(), Cgroups(None, None, 0))
    assert node.gpus == len(numbers)
    assert node.gpu_memory_each == min((CARDS[n][1] for n in numbers), default=0)
    for device, number in enumerate(numbers):
        assert seen(device) == str(number)


def test_fewer_by_the_settings_are_the_first_ones(driver: Driver) -> None:
    driver("2,1,0")
    node = nodes.detect(Config(gpus=2), Cgroups(None, None, 0))
    assert (node.gpus, node.gpu_memory_each) == (2, 8 * GIB)
    assert seen(0, 1) == "2,1"


def test_declared_ones_are_there_where_none_is_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "real_gpus", lambda: nodes.Devices(0, 0))
    settings = Config(cpus=1.5, memory="3GiB", gpus=2, gpu_memory="5GiB")
    node = nodes.detect(settings, Cgroups(None, None, 0))
    assert (node.gpus, node.virtual_gpus, node.gpu_memory_each) == (2, True, 5 * GIB)
    assert node.capacity == Resources(cpu=1500, gpu=2000, memory=3 * GIB, gpu_memory=10 * GIB)
    none = nodes.detect(Config(), Cgroups(None, None, 0))
    assert (none.gpus, none.virtual_gpus, none.capacity.gpu) == (0, False, 0)


@pytest.mark.parametrize("broken", ["init", "count"])
def test_a_driver_that_fails_is_none(broken: str, driver: Driver) -> None:
    nvml = driver(broken=broken)
    assert nodes.real_gpus() == nodes.Devices(0, 0)
    assert nvml.open == 0
    node = nodes.detect(Config(gpus=2, gpu_memory="1GiB"), Cgroups(None, None, 0))
    assert node.virtual_gpus
    assert seen(1) == "1"
