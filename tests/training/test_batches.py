from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from suture.training.batches import (
    Example,
    batches_from,
    collate,
    epoch_plan,
    epoch_steps,
    steps_from,
)

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=80)


@given(lengths, st.integers(8, 200), st.integers(0, 5))
def test_every_row_comes_once_an_epoch_and_batches_fit(rows, batch_tokens, seed):
    plan = epoch_plan(rows, batch_tokens=batch_tokens, seed=seed, epoch=0)
    assert sorted(i for batch in plan for i in batch) == list(range(len(rows)))
    for batch in plan:
        widest = max(rows[i] for i in batch)
        assert len(batch) == 1 or len(batch) * widest <= batch_tokens


def test_epochs_differ_and_seeds_differ():
    rows = [5] * 40
    plans = [
        epoch_plan(rows, batch_tokens=20, seed=seed, epoch=epoch)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert plans[0] != plans[1] != plans[2] != plans[0]


def test_stream_resumes_at_any_step():
    examples = [Example(tuple(range(1, 3 + i % 7))) for i in range(30)]
    whole = batches_from(examples, batch_tokens=24, seed=3, first_step=0)
    reference = [next(whole).ids.tolist() for _ in range(40)]
    for first in (0, 1, 7, 23, 39):
        stream = batches_from(examples, batch_tokens=24, seed=3, first_step=first)
        assert [next(stream).ids.tolist() for _ in range(40 - first)] == reference[first:]


def test_padding_is_small():
    examples = [Example(tuple(range(1 + (i * 37) % 50))) for i in range(1, 2000)]
    examples = [e for e in examples if e.ids]
    steps = len(epoch_plan([len(e.ids) for e in examples], batch_tokens=1024, seed=0, epoch=0))
    stream = batches_from(examples, batch_tokens=1024, seed=0, first_step=0)
    used = total = 0
    for _ in range(steps):
        batch = next(stream)
        used += int(batch.attend.sum())
        total += batch.ids.numel()
    assert used / total > 0.95


def test_collate_masks_prompt_and_padding():
    batch = collate([Example((7, 8, 9), 1), Example((4,), 0)])
    assert batch.ids.tolist() == [[7, 8, 9], [4, 0, 0]]
    assert batch.attend.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[-100, 8, 9], [4, -100, -100]]


@given(lengths, st.integers(8, 200), st.integers(1, 30), st.integers(0, 5))
def test_steps_of_rows_hold_every_row_once_and_fit_in_pieces(rows, batch_tokens, batch_rows, seed):
    steps = epoch_steps(
        rows, batch_tokens=batch_tokens, batch_rows=batch_rows, accumulate=1, seed=seed, epoch=2
    )
    assert sorted(i for step in steps for part in step for i in part) == list(range(len(rows)))
    sizes = [sum(map(len, step)) for step in steps]
    assert sizes[:-1] == [batch_rows] * (len(steps) - 1)
    assert 0 < sizes[-1] <= batch_rows
    for part in (part for step in steps for part in step):
        assert len(part) == 1 or len(part) * max(rows[i] for i in part) <= batch_tokens


def test_steps_resume_anywhere_and_count_what_came_before():
    examples = [Example(tuple(range(1, 3 + i % 7))) for i in range(30)]
    for how in ({"batch_rows": 7, "accumulate": 1}, {"batch_rows": None, "accumulate": 3}):
        given = {"batch_tokens": 24, "seed": 3, **how}
        whole = steps_from(examples, **given, first_step=0)
        reference = [next(whole) for _ in range(25)]
        before = 0
        for step in reference:
            assert step.before == before
            before += len(step.batches)
        for first in (1, 4, 5, 17):
            stream = steps_from(examples, **given, first_step=first)
            for expected in reference[first:]:
                found = next(stream)
                assert (found.before, found.epoch, found.last) == (
                    expected.before, expected.epoch, expected.last,
                )  # fmt: skip
                for ours, theirs in zip(found.batches, expected.batches, strict=True):
                    assert ours.ids.tolist() == theirs.ids.tolist()
    ends = [step.last for step in reference]
    assert ends.index(True) + 1 == len(
        epoch_steps([len(e.ids) for e in examples], batch_tokens=24, batch_rows=None,
                    accumulate=3, seed=3, epoch=0)
    )  # fmt: skip
