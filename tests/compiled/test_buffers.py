"""Memory of results is used again when nobody holds it, and not before."""

import pytest
import torch

from retrograde.compiled import buffers

SHAPES = [(3, 5, 70_001), (1, 2**19), (7, 11, 13_001)]


@pytest.fixture(autouse=True)
def _none_kept():
    buffers._kept.clear()
    yield
    buffers._kept.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_room_is_a_tensor_like_any_other(shape, dtype):
    found = buffers.room(torch.empty(1, dtype=dtype), *shape)
    assert found.shape == shape and found.dtype == dtype and found.is_contiguous()
    assert found.data_ptr() % 64 == 0
    found.fill_(2)
    assert float(found.sum(dtype=torch.float64)) == 2 * found.numel()


def test_memory_is_used_again_once_no_view_of_it_is_left():
    like = torch.empty(1)
    first = buffers.room(like, 4, 100_000)
    place, view = first.data_ptr(), first[1:, 7:]
    del first
    view.fill_(1)
    second = buffers.room(like, 4, 100_000).fill_(2)
    assert second.data_ptr() != place
    assert bool((view == 1).all())
    del view
    third = buffers.room(like, 400_001 // 3, 3)
    assert third.data_ptr() == place
    assert bool((second == 2).all())


def test_only_a_few_are_kept_and_none_that_are_very_large():
    like = torch.empty(1)
    several = [buffers.room(like, 2**17) for _ in range(2 * buffers.COUNT)]
    del several
    assert len(buffers._kept) == buffers.COUNT
    buffers._kept.clear()
    large = buffers.room(like, buffers.LARGE // 4 + 1)
    del large
    assert not buffers._kept


def test_one_of_another_size_stays_for_who_asks_for_it():
    like = torch.empty(1)
    small = buffers.room(like, 2**17)
    place = small.data_ptr()
    del small
    large = buffers.room(like, 2**19)
    assert large.data_ptr() != place
    assert buffers.room(like, 2**17 - 5).data_ptr() == place
