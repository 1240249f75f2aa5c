"""Arrays and tensors in shared memory: what is sent arrives, without a copy, and nobody's writes
reach another."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zenos.bus import sharing
from zenos.bus.handle import ITEM_BYTES, Layout
from zenos.bus.memory import Pool
from zenos.bus.view import View
from zenos.core import limits
from zenos.core.errors import ConflictError, InvalidError
from zenos.runtime import arrays

SHAPES = [(), (0,), (3, 0, 2), (1,), (5, 7)]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(16 * limits.MIB, prefault=False) as made:
        yield made


def tensor(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    count = int(np.prod(shape))
    return (
        (torch.arange(count) % 2 if dtype == "bool" else torch.arange(count))
        .to(getattr(torch, dtype))
        .view(shape)
    )


@pytest.mark.parametrize("dtype", ITEM_BYTES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_shared_is_read(pool: Pool, dtype: str, shape: tuple[int, ...]) -> None:
    sent = tensor(dtype, shape)
    with sharing.share(pool, sent) as parcel, View(parcel) as view:
        (read,) = sharing.read(view, "torch")
        assert (read.dtype, read.shape) == (sent.dtype, sent.shape)
        assert torch.equal(read, sent)
        if dtype == "bfloat16":
            with pytest.raises(InvalidError, match=r"^cannot make a numpy array of bfloat16"):
                sharing.read(view, "numpy")
            return
        (array,) = sharing.read(view, "numpy")
        assert array.dtype == np.dtype(dtype)
        assert np.array_equal(array, sent.numpy())
    with sharing.share(pool, sent.numpy()) as parcel, View(parcel) as view:
        assert torch.equal(sharing.read(view, "torch")[0], sent)


@given(
    st.lists(st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.sampled_from(SHAPES)), min_size=1)
)
@settings(max_examples=30, deadline=None)
def test_many_arrays_of_both_libraries_share_one_buffer(
    described: list[tuple[str, tuple[int, ...]]],
) -> None:
    sent = [tensor(*one) for one in described]
    mixed = [one.numpy() if one.dtype != torch.bfloat16 else one for one in sent]
    with Pool(limits.MIB, prefault=False) as pool, sharing.share(pool, *mixed) as parcel:
        read = sharing.read(View(parcel), "torch")
    assert all(torch.equal(a, b) for a, b in zip(read, sent, strict=True))


def test_strides_byte_order_and_gradients_are_resolved_in_the_copy(pool: Pool) -> None:
    grid = np.arange(12, dtype=">i4").reshape(3, 4)
    weights = torch.arange(6.0).view(2, 3).requires_grad_()
    sent = [grid[::-1, ::2].T, weights.t(), torch.ones(1).expand(4)]
    with sharing.share(pool, *sent) as parcel, View(parcel) as view:
        first, second, third = sharing.read(view, "torch")
    assert first.is_contiguous()
    assert first.tolist() == grid[::-1, ::2].T.tolist()
    assert not second.requires_grad
    assert second.tolist() == weights.t().tolist()
    assert third.tolist() == [1.0] * 4


def test_an_array_keeps_its_memory_and_nothing_else_does(pool: Pool) -> None:
    for library in ("numpy", "torch"):
        with sharing.share(pool, np.full(1000, 7.0)) as parcel, View(parcel) as view:
            (array,) = sharing.read(view, library)
            part = array[10:20].reshape(2, 5)
            del array
        assert pool.state.lent == 1
        with sharing.share(pool, np.zeros(1000)):
            assert part.tolist() == [[7.0] * 5] * 2
        del part
        gc.collect()
        assert pool.state.lent == 0


def test_nothing_is_copied(pool: Pool) -> None:
    buffer = pool.allocate(64)
    filled = arrays.torch_in(buffer, Layout("float32", (4,), 16))
    again = arrays.numpy_in(buffer, Layout("float32", (4,), 16))
    filled[:] = torch.arange(4.0)
    with buffer.lend(Layout("float32", (4,), 16)) as parcel, View(parcel) as view:
        (array,), (read,) = sharing.read(view, "numpy"), sharing.read(view, "torch")
        assert array.tolist() == read.tolist() == again.tolist() == [0, 1, 2, 3]
        assert array.ctypes.data == read.data_ptr()
        # Only to see that it is the same memory: after `lend` nobody may do this.
        again[0] = 9
        assert array[0] == read[0] == 9


def test_writes_of_readers_reach_nobody_else(pool: Pool) -> None:
    with sharing.share(pool, torch.zeros(4)) as parcel, View(parcel) as one, View(parcel) as other:
        (array,), (mine,) = sharing.read(one, "numpy"), sharing.read(one, "torch")
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        mine += 5
        assert array.tolist() == [5.0] * 4
        assert sharing.read(other, "torch")[0].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    "value",
    [
        np.array(["text"]),
        np.array([object()]),
        np.zeros(2, "complex64"),
        np.zeros(2, "datetime64[s]"),
        np.zeros(2, [("a", "i4")]),
        np.ma.masked_array([1, 2], [True, False]),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2).to_sparse(),
        [1, 2],
        b"bytes",
    ],
    ids=lambda value: str(type(value)),
)
def test_what_cannot_be_shared_is_refused_and_takes_nothing(pool: Pool, value: object) -> None:
    with pytest.raises(InvalidError, match=r"^cannot share "):
        sharing.share(pool, np.zeros(3), value)
    state = pool.state
    assert (state.lent, state.written) == (0, 0)


def test_arrays_stay_within_their_buffer(pool: Pool) -> None:
    buffer = pool.allocate(16)
    for fill in (arrays.numpy_in, arrays.torch_in):
        with pytest.raises(InvalidError, match=r"^cannot put 20 bytes"):
            fill(buffer, Layout("float32", (5,)))
    buffer.release()
    with pytest.raises(ConflictError):
        arrays.numpy_in(buffer, Layout())


def test_numpy_alone_does_not_import_torch() -> None:
    script = (
        "import sys, numpy as np\n"
        "from zenos.bus import sharing; from zenos.bus.memory import Pool\n"
        "from zenos.bus.view import View; import zenos.runtime.arrays\n"
        "with sharing.share(Pool(2**20), np.arange(3)) as parcel:\n"
        "    assert sharing.read(View(parcel), 'numpy')[0].tolist() == [0, 1, 2]\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
