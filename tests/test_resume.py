"""Unfinished work is continued, and only its own."""

import pickle
import re
import signal
import time

import numpy as np
import pytest
import torch

from apm_core.errors import ArtifactError, InterruptedRunError
from apm_core.runtime.resume import Part, Resume, each
from apm_core.runtime.run import Run

STATE = {"round": 3, "images": torch.arange(6.0).view(2, 3), "done": [{"a": 1.5, "b": "text"}]}


@pytest.fixture
def resume(tmp_path):
    return Resume(tmp_path / "folder", {"lr": 0.1}, every=0)


def test_a_state_comes_back_as_it_was(resume):
    resume.save(STATE)
    found = resume.load()
    assert torch.equal(found.pop("images"), STATE["images"])
    assert found == {"round": 3, "done": STATE["done"]}


def test_nothing_is_loaded_before_a_save_and_after_a_clear(resume):
    assert resume.load() is None
    resume.clear()
    resume.save(STATE)
    resume.clear()
    assert resume.load() is None
    assert list(resume.path.parent.iterdir()) == []


def test_a_save_replaces_the_last_one_and_leaves_nothing_beside_it(resume):
    resume.save({"round": 1})
    resume.save({"round": 2})
    assert resume.load() == {"round": 2}
    assert list(resume.path.parent.iterdir()) == [resume.path]


def test_other_settings_have_a_file_of_their_own(resume):
    resume.save(STATE)
    assert Resume(resume.path.parent, {"lr": 0.2}).load() is None
    assert Resume(resume.path.parent, {"lr": 0.1}).load() is not None


def test_a_file_of_other_settings_under_this_name_is_refused(resume):
    other = Resume(resume.path.parent, {"lr": 0.2})
    other.save(STATE)
    other.path.rename(resume.path)
    message = f"and settings {other.fingerprint}, expected 2 and {resume.fingerprint}: delete"
    with pytest.raises(ArtifactError, match=message):
        resume.load()


def test_a_file_of_another_format_is_refused(resume, monkeypatch):
    monkeypatch.setattr("apm_core.runtime.resume.FORMAT", 3)
    resume.save(STATE)
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match=r"has format 3 and settings .*, expected 2 and"):
        resume.load()


def refused(resume: Resume) -> bool:
    with pytest.raises(ArtifactError) as caught:
        resume.load()
    message = str(caught.value)
    start = f"{resume.path}: the resume file is damaged ("
    remedy = f"): delete {resume.path} to start this stage anew"
    return message.startswith(start) and message.endswith(remedy) and "\n" not in message


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(resume, share):
    resume.save(STATE)
    whole = resume.path.read_bytes()
    resume.path.write_bytes(whole[: int(share * len(whole))])
    assert refused(resume)


@pytest.mark.parametrize("content", [b"\0" * 500, bytes(range(256)) * 4, b"PK\x03\x04" + b"x" * 99])
def test_a_file_of_other_bytes_is_refused(resume, content):
    resume.path.parent.mkdir()
    resume.path.write_bytes(content)
    assert refused(resume)


@pytest.mark.parametrize("value", [3, [1], {"state": {}}, {"format": 2, "fingerprint": "x"}])
def test_a_file_without_the_header_is_refused(resume, value):
    resume.path.parent.mkdir()
    torch.save(value, resume.path)
    assert refused(resume)


class Malicious:
    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return (self.target.touch, ())


def test_code_in_the_file_is_not_run(resume, tmp_path):
    target = tmp_path / "touched"
    resume.path.parent.mkdir()
    resume.path.write_bytes(pickle.dumps(Malicious(target)))
    assert refused(resume)
    torch.save({"format": 2, "fingerprint": "x", "state": Malicious(target)}, resume.path)
    taken = f"{resume.path}: the resume file holds getattr, which takes code to load: delete"
    with pytest.raises(ArtifactError, match=re.escape(taken)):
        resume.load()
    assert not target.exists()


def test_a_save_is_due_when_its_time_has_passed(tmp_path):
    assert Resume(tmp_path, 0, every=0).due()
    waiting = Resume(tmp_path, 0, every=1000)
    assert not waiting.due()
    waiting._saved -= 1001
    assert waiting.due()
    waiting.save({})
    assert not waiting.due()


def test_a_full_disk_keeps_the_state_before(small_disk):
    resume = Resume(small_disk / "folder", "settings")
    resume.save(STATE)
    message = rf"{resume.path}: cannot be written \(No space left on device\): make room"
    with pytest.raises(ArtifactError, match=message):
        resume.save({"images": torch.randn(1 << 19)})
    assert resume.load()["round"] == 3
    assert list(resume.path.parent.iterdir()) == [resume.path]


def test_each_does_finished_items_only_once(resume):
    calls = []

    def work(done, item, part):
        calls.append((len(done), item))
        if len(calls) == 3:
            raise RuntimeError("killed")
        return {"name": item, "value": torch.tensor(float(len(done)))}

    with pytest.raises(RuntimeError, match="killed"):
        each("abcd", work, resume)
    found = each("abcd", work, resume)
    assert calls == [(0, "a"), (1, "b"), (2, "c"), (2, "c"), (3, "d")]
    assert [(one["name"], float(one["value"])) for one in found] == [
        ("a", 0),
        ("b", 1),
        ("c", 2),
        ("d", 3),
    ]
    assert each("abcd", work, resume)[3]["name"] == "d" and len(calls) == 5


def test_each_continues_an_unfinished_item(resume):
    seen = []

    def work(done, item, part):
        seen.append((item, part.state))
        part.save({"half": item})
        if len(seen) == 2:
            raise RuntimeError("killed")
        return item

    with pytest.raises(RuntimeError, match="killed"):
        each("abc", work, resume)
    assert resume.load() == {"done": ["a"], "part": {"half": "b"}}
    assert each("abc", work, resume) == ["a", "b", "c"]
    assert seen == [("a", None), ("b", None), ("b", {"half": "b"}), ("c", None)]


def test_the_items_of_a_part_are_continued_too(resume):
    seen = []

    def inner(done, item, part):
        seen.append((item, part.state))
        part.save({"half": item})
        if len(seen) == 4:
            raise RuntimeError("killed")
        return item

    def outer(done, item, part):
        return each([f"{item}1", f"{item}2"], inner, part)

    with pytest.raises(RuntimeError, match="killed"):
        each("ab", outer, resume)
    part = {"done": ["b1"], "part": {"half": "b2"}}
    assert resume.load() == {"done": [["a1", "a2"]], "part": part}
    assert each("ab", outer, resume) == [["a1", "a2"], ["b1", "b2"]]
    fresh = [("a1", None), ("a2", None), ("b1", None), ("b2", None)]
    assert seen == [*fresh, ("b2", {"half": "b2"})]


def test_items_are_saved_when_their_time_has_come(tmp_path):
    resume = Resume(tmp_path, "settings", every=1000)

    def due(_done: list, _item: str, part: Part) -> bool:
        return part.due()

    assert each("ab", due, resume) == [False, False]
    assert not resume.path.exists()


def test_each_works_without_a_file():
    def work(done: list, item: int, part: None) -> int:
        assert part is None
        return len(done) * item

    assert each([5, 6], work, None) == [0, 6]


def test_saving_takes_at_most_a_hundredth_of_the_time(resume, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    save = torch.save

    def slow(*arguments):
        now[0] += 3.0
        save(*arguments)

    monkeypatch.setattr(torch, "save", slow)
    slow_disk = Resume(resume.path.parent, "settings", every=60)
    now[0] = 61.0
    assert slow_disk.due()
    slow_disk.save(STATE)
    now[0] += 299.0
    assert not slow_disk.due()
    now[0] += 2.0
    assert slow_disk.due()


def test_a_job_that_is_to_stop_saves_at_once_and_says_so(tmp_path):
    resume = Resume(tmp_path, "settings", every=1000)

    def work(done, item, part):
        if item == 2:
            resume.stopping = signal.SIGTERM
        return item

    with pytest.raises(
        InterruptedRunError, match="stopped by SIGTERM: what is done so far is kept, the"
    ):
        each([1, 2, 3], work, resume)
    assert Resume(tmp_path, "settings").load() == {"done": [1, 2]}


def test_a_flipped_bit_is_refused_or_harmless(tmp_path):
    resume = Resume(tmp_path, "settings")
    state = {"images": torch.randn(20, 3), "round": 7}
    resume.save(state)
    whole = resume.path.read_bytes()
    random, refused = np.random.default_rng(0), 0
    for place in random.integers(8 * len(whole), size=150):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        resume.path.write_bytes(damaged)
        try:
            loaded = resume.load()
        except ArtifactError:
            refused += 1
        else:
            assert torch.equal(loaded["images"], state["images"]) and loaded["round"] == 7
    assert refused > 50


def test_the_seconds_of_killed_runs_are_counted(resume, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    killed = Resume(resume.path.parent, {"lr": 0.1})
    now[0] += 30
    killed.save(STATE)
    now[0] += 7  # work that is lost
    again = Resume(resume.path.parent, {"lr": 0.1})
    run = Run(None, again, started=now[0])
    again.load()
    assert again.earlier == 30.0
    now[0] += 5
    assert run.seconds() == 35.0
    again.save(STATE)
    third = Resume(resume.path.parent, {"lr": 0.1})
    third.load()
    assert third.earlier == 35.0
