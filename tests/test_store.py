"""Artifacts come back as they were written, or are refused in one line."""

import json
import os
import random
import re
import socket
import subprocess
import zipfile

import numpy as np
import pytest
import zarr
from zarr.storage import ZipStore

from apm_core.data.prepared import PreparedData
from apm_core.errors import ArtifactError
from apm_core.runtime import store
from apm_core.settings.text import canonical, fingerprint

ARRAYS = {
    "images": np.random.default_rng(0).normal(size=(7, 3, 4, 4)).astype(np.float32),
    "classes": np.arange(7),
    "pixels": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
}
SETTINGS = {"lr": 0.1, "epochs": 8, "nested": {"b": [1, None, "x"], "a": True}}


@pytest.fixture
def path(tmp_path):
    """An artifact of the kind "teachers"."""
    target = tmp_path / "work" / "one.zarr.zip"
    store.write(target, "teachers", ARRAYS, settings=SETTINGS, info={"seconds": 1.5})
    return target


def same(a, b) -> bool:
    """Equal names, types, shapes and bytes."""
    if list(sorted(a)) != list(sorted(b)):
        return False
    pairs = [(np.asarray(a[name]), np.asarray(b[name])) for name in a]
    return all((x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()) for x, y in pairs)


def refusal(path, kind: str = "teachers") -> str:
    """The message with which the file is refused."""
    with pytest.raises(ArtifactError) as caught:
        store.read(path, kind)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize(
    "array",
    [
        np.float64(3.25),
        np.array(7, dtype=np.int64),
        np.zeros((0, 5), dtype=np.float32),
        np.zeros((5, 0, 2), dtype=np.float32),
        np.zeros((0,), dtype=np.int64),
        np.zeros((3, 4), dtype=np.float32),
        np.array([np.nan, np.inf, -0.0, 1e-45], dtype=np.float32),
        np.arange(12, dtype=np.int64).reshape(3, 4).T,
        np.arange(20, dtype=np.uint8)[::2],
        np.array([True, False]),
        np.random.default_rng(1).integers(0, 256, (5, 3 << 20), dtype=np.uint8),
        np.random.default_rng(1).normal(size=(3001, 500)),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays_come_back_as_they_were(tmp_path, array):
    array = np.asarray(array)
    store.write(tmp_path / "a.zarr.zip", "x", {"a": array}, settings={})
    found = store.read(tmp_path / "a.zarr.zip", "x").arrays
    assert same(found, {"a": array})


def test_large_arrays_are_stored_in_chunks_of_some_rows(tmp_path):
    store.write(tmp_path / "a.zarr.zip", "x", {"a": np.zeros((3001, 500))}, settings={})
    with zipfile.ZipFile(tmp_path / "a.zarr.zip") as file:
        meta = json.loads(file.read("a/zarr.json"))
    rows, columns = meta["chunk_grid"]["configuration"]["chunk_shape"]
    assert columns == 500 and 1 < rows < 3001 and rows * 500 * 8 <= store.CHUNK_BYTES


def test_some_rows_are_read_without_the_others(tmp_path):
    array = np.arange(3 * 1_500_000).reshape(3, 1_500_000)  # a chunk for each row
    written = store.write(tmp_path / "a", "toy", {"x": array}, settings={})
    found = store.rows_of(written.path, "x", np.array([0, 2]))
    np.testing.assert_array_equal(found, array[[0, 2]])
    with pytest.raises(ArtifactError, match="there is no such file"):
        store.rows_of(tmp_path / "b", "x", np.array([0]))


def test_an_artifact_says_how_it_was_made(path, tmp_path):
    given = store.read(path, "teachers")
    target = tmp_path / "two.zarr.zip"
    written = store.write(
        target, "shard", ARRAYS, settings=SETTINGS, inputs={"teachers0": given}, info={"a": [1]}
    )
    found = store.read(target, "shard")
    assert (found.kind, found.settings, found.info) == ("shard", SETTINGS, {"a": [1]})
    assert found.inputs == {"teachers0": given.content}
    assert found.content == written.content == store.content_of(target)
    assert found.path == written.path == str(target)
    assert (written.settings, written.inputs, written.info) == (
        found.settings,
        found.inputs,
        found.info,
    )
    with zipfile.ZipFile(target) as file:
        attributes = json.loads(file.read("zarr.json"))["attributes"]
    assert attributes["versions"] == store.versions()
    assert attributes["fingerprint"] == fingerprint(SETTINGS)
    assert attributes["format"] == store.FORMAT


def test_equal_settings_are_equal_text():
    assert canonical({"b": 1, "a": {"d": 2, "c": 3}}) == canonical({"a": {"c": 3, "d": 2}, "b": 1})
    assert canonical({"a": 8.0, "b": [2.0, (1.0,)]}) == canonical({"a": 8, "b": [2, [1]]})
    assert canonical({"a": {"b": 0.1}}) == '{"a": {"b": 0.1}}'
    assert canonical({1: "x"}) == canonical({"1": "x"})


def test_different_settings_have_different_names():
    variants = [{}, {"a": 1}, {"a": "1"}, {"a": True}, {"a": None}, {"a": 1.5}, {"a": [1]}]
    variants += [{"b": 1}, {"a": {"a": 1}}, {"a": {"a": 1.5}}, [1, 2], [2, 1]]
    names = {fingerprint(one) for one in variants}
    assert len(names) == len(variants)
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in names)
    assert fingerprint({"epochs": 8.0}) == fingerprint({"epochs": 8})


def test_settings_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        canonical({"lr": float("nan")})


def test_content_hash_is_that_of_the_content(tmp_path):
    contents = []
    for number, settings in enumerate(({"a": 1}, {"a": 2, "long": "x" * 500})):
        arrays = dict(reversed(ARRAYS.items())) if number else ARRAYS
        contents.append(store.write(tmp_path / f"{number}", "x", arrays, settings=settings).content)
    assert (tmp_path / "0").read_bytes() != (tmp_path / "1").read_bytes()
    assert contents[0] == contents[1] == store.content_hash(ARRAYS)
    strided = {**ARRAYS, "classes": np.repeat(np.arange(7), 2)[::2]}
    assert store.content_hash(strided) == contents[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": np.arange(7).astype(np.int32)},
        {"classes": np.arange(7).astype(np.uint64)},
        {"classes": np.arange(7)[:, None]},
        {"classes": np.arange(7)[::-1]},
        {"pixels": ARRAYS["pixels"].reshape(3, 2, 4)},
        {"more": np.zeros(0)},
    ],
)
def test_content_hash_sees_type_shape_order_and_names(changed):
    assert store.content_hash({**ARRAYS, **changed}) != store.content_hash(ARRAYS)


def test_a_missing_file_is_named_with_how_to_make_it(tmp_path):
    missing = tmp_path / "no.zarr.zip"
    remedy = f"check the path, or run snakemake {missing}"
    assert refusal(missing) == f"{missing}: there is no such file: {remedy}"
    with pytest.raises(ArtifactError, match="there is no such file"):
        store.content_of(missing)


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_file_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    message = refusal(path)
    assert "the file is damaged (" in message
    assert message.endswith(f": delete {path} and run snakemake again")
    with pytest.raises(ArtifactError, match="the file is damaged"):
        store.content_of(path)


def test_every_flipped_bit_is_refused_or_harmless(path):
    whole, chosen = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(250):
        at = chosen.randrange(len(whole))
        flipped = bytes([whole[at] ^ (1 << chosen.randrange(8))])
        path.write_bytes(whole[:at] + flipped + whole[at + 1 :])
        try:
            found = store.read(path, "teachers")
        except ArtifactError as error:
            message = str(error)
            assert "\n" not in message and message.startswith(f"{path}: ")
            refused += 1
        else:
            assert same(found.arrays, ARRAYS), at
            assert (found.settings, found.info) == (SETTINGS, {"seconds": 1.5}), at
    assert refused > 150


def test_members_that_pretend_to_be_compressed_are_refused(path):
    whole = path.read_bytes()
    at = whole.find(b"PK\x01\x02")  # of a member in the directory; its method is ten bytes on
    while at > 0:
        path.write_bytes(whole[: at + 10] + b"\x08" + whole[at + 11 :])
        assert "the file is damaged (" in refusal(path)
        at = whole.find(b"PK\x01\x02", at + 1)


@pytest.mark.parametrize("content", [b"", b"\0" * 3000, b"not a zip " * 99])
def test_a_file_of_other_bytes_is_refused(path, content):
    path.write_bytes(content)
    assert "the file is damaged (" in refusal(path)


def test_a_file_that_nobody_took_for_an_artifact_is_not_to_be_deleted(tmp_path):
    (tmp_path / "digits_ipc10.json").write_text("{}")
    message = refusal(tmp_path / "digits_ipc10.json")
    assert "is another kind of file" in message and "delete" not in message


def test_another_kind_is_refused(path):
    assert (
        refusal(path, "shard")
        == f"{path}: its kind is 'teachers', expected 'shard': check the path"
    )


def test_another_format_version_is_refused(path, monkeypatch):
    monkeypatch.setattr(store, "FORMAT", 7)
    store.write(path, "teachers", ARRAYS, settings=SETTINGS)
    monkeypatch.undo()
    message = refusal(path)
    assert "format version 7, this apm reads version 2: delete" in message


def repack(path, change) -> None:
    """Write the zip again with what `change(name, bytes)` makes of its members; None leaves out."""
    with zipfile.ZipFile(path) as file:
        members = {name: change(name, file.read(name)) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            if content is not None:
                file.writestr(name, content)


@pytest.mark.parametrize("gone", ["classes", "classes/c", "images/zarr.json"])
def test_a_sound_zip_without_all_arrays_is_refused(path, gone):
    repack(path, lambda name, content: None if name.startswith(gone) else content)
    message = refusal(path)
    assert "match" in message and f"checksum: delete {path}" in message


def test_a_sound_zip_with_an_exchanged_array_is_refused(path, tmp_path):
    other = tmp_path / "other.zarr.zip"
    changed = {**ARRAYS, "classes": np.arange(7)[::-1]}
    store.write(other, "teachers", changed, settings=SETTINGS)
    with zipfile.ZipFile(other) as file:
        chunk = file.read("classes/c/0")
    repack(path, lambda name, content: chunk if name == "classes/c/0" else content)
    assert "does not match its checksum" in refusal(path)


def test_a_sound_zip_of_something_else_is_refused(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "nothing")
    assert "the file is damaged" in refusal(path)


@pytest.mark.parametrize("key", ["format", "kind", "content", "settings", "inputs", "info"])
def test_a_file_without_one_of_its_attributes_is_refused(path, key):
    def without(name, content):
        if name != "zarr.json":
            return content
        meta = json.loads(content)
        del meta["attributes"][key]
        return json.dumps(meta)

    repack(path, without)
    refusal(path)


def test_writing_replaces_the_file_as_a_whole(path):
    store.write(path, "teachers", {"a": np.zeros(1)}, settings={})
    assert same(store.read(path, "teachers").arrays, {"a": np.zeros(1)})
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(path):
    with pytest.raises(ValueError, match="JSON"):
        store.write(path, "teachers", ARRAYS, settings={"lr": float("nan")})
    with pytest.raises(TypeError):
        store.write(path, "teachers", ARRAYS, settings={}, info={"bad": object()})
    assert same(store.read(path, "teachers").arrays, ARRAYS)
    assert list(path.parent.iterdir()) == [path]


def test_atomic_path_renames_on_success_and_removes_on_error(tmp_path):
    target = tmp_path / "new" / "file.txt"
    with store.atomic_path(target) as temporary:
        temporary.write_text("old")
        assert temporary.parent == target.parent and not target.exists()
    with pytest.raises(RuntimeError, match="stop"), store.atomic_path(target) as temporary:
        temporary.write_text("half of the new")
        raise RuntimeError("stop")
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    target, host = tmp_path / "a.json", socket.gethostname()
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead = tmp_path / f".a.json.{host}.local.{ended.pid}.tmp"
    others = [
        tmp_path / f".a.json.{host}.17.{os.getppid()}.tmp",  # lives
        tmp_path / f".a.json.node7.17.{ended.pid}.tmp",  # of another host
        tmp_path / f".ba.json.{host}.local.{ended.pid}.tmp",  # of another file
    ]
    for file in (dead, *others):
        file.write_text("half")
    store.write_json(target, "scores", {})
    assert sorted(tmp_path.iterdir()) == sorted([target, *others])


def test_writers_have_names_of_their_own(tmp_path, monkeypatch):
    def name() -> str:
        with store.atomic_path(tmp_path / "a") as temporary:
            temporary.touch()
        return temporary.name

    names = {name()}
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    names.add(name())
    monkeypatch.setattr(os, "getpid", lambda: 4_000_000)
    names.add(name())
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    names.add(name())
    assert len(names) == 4 and ".a.node7.17.4000000.tmp" in names


def test_two_writers_of_the_same_work_leave_the_first_file(path):
    first = path.stat()
    again = store.write(path, "teachers", ARRAYS, settings=SETTINGS, info={"seconds": 9.0})
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert again.info == {"seconds": 1.5}
    for other in ({"lr": 0.2}, SETTINGS):
        store.write(path, "teachers", ARRAYS, settings=other)
        assert store.read(path, "teachers").settings == other


def test_a_damaged_file_is_replaced_by_the_same_content(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    store.write(path, "teachers", ARRAYS, settings=SETTINGS)
    assert same(store.read(path, "teachers").arrays, ARRAYS)


def test_a_full_disk_is_named_and_loses_nothing(small_disk):
    path = small_disk / "one.zarr.zip"
    store.write(path, "teachers", ARRAYS, settings=SETTINGS)
    noise = np.random.default_rng(0).integers(0, 256, 2 << 20, dtype=np.uint8)
    message = f"{path}: cannot be written (No space left on device): make room"
    with pytest.raises(ArtifactError, match=re.escape(message)):
        store.write(path, "teachers", {"noise": noise}, settings={})
    assert same(store.read(path, "teachers").arrays, ARRAYS)
    assert list(small_disk.iterdir()) == [path]
    with pytest.raises(ArtifactError, match=r"scores\.json: cannot be written \(No space left"):
        store.write_json(small_disk / "scores.json", "scores", {"x": "x" * (2 << 20)})
    assert list(small_disk.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for path in (small_disk / "a.json", small_disk / "new" / "a.json"):
        message = f"{path}: cannot be written (Read-only file system): make room, or allow writing"
        with pytest.raises(ArtifactError, match=re.escape(message)):
            store.write_json(path, "scores", {})
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    store.write_json(small_disk / "new" / "a.json", "scores", {})


def test_json_comes_back_and_is_written_as_a_whole(tmp_path):
    path, value = tmp_path / "a" / "scores.json", {"mean": 1.5, "runs": [1, None], "ü": True}
    store.write_json(path, "evaluation", value, {"data": "abc"})
    assert store.read_json(path, "evaluation") == (value, {"data": "abc"})
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(path, "evaluation", {"mean": float("nan")})
    assert store.read_json(path, "evaluation") == (value, {"data": "abc"})
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b'{"mean": 1', b"\xff\xfe"])
def test_json_that_cannot_be_read_is_refused(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_bytes(content)
    message = rf"{path}: cannot be read \(.*\): delete {path} and run snakemake again"
    with pytest.raises(ArtifactError, match=message):
        store.read_json(path, "evaluation")


@pytest.mark.parametrize("content", ["{}", "[1]", "3", "null", '{"mean": 41.2}'])
def test_json_of_somebody_else_is_refused(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(
        ArtifactError, match=r"json: has no checksum, so apm did not write it: move"
    ):
        store.read_json(path, "evaluation")


def test_json_that_is_missing_edited_or_of_another_kind_or_version_is_refused(
    tmp_path, monkeypatch
):
    path = tmp_path / "scores.json"
    with pytest.raises(
        ArtifactError, match=r"json: there is no such file: check the path, or run snakemake"
    ):
        store.read_json(path, "evaluation")
    store.write_json(path, "evaluation", {"mean": 41.25, "n": 5}, {"data": "abc"})
    with pytest.raises(
        ArtifactError, match="json: its kind is 'evaluation', expected 'ceiling': check"
    ):
        store.read_json(path, "ceiling")
    for old, new in (("41.25", "47.25"), ('"abc"', '"abd"'), ('"n"', '"m"'), ('"format": 1', "")):
        edited = tmp_path / "edited.json"
        edited.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(ArtifactError, match=r"edited\.json: (does not match|cannot be read)"):
            store.read_json(edited, "evaluation")
    monkeypatch.setattr(store, "JSON_FORMAT", 2)
    with pytest.raises(ArtifactError, match="json: format version 1, this apm reads version 2"):
        store.read_json(path, "evaluation")


def test_an_input_of_other_content_is_refused(path, tmp_path):
    given = store.read(path, "teachers")
    made = store.write(tmp_path / "b", "shard", {}, settings={}, inputs={"data": given})
    made.require_input("data", given)
    other = store.write(tmp_path / "c", "teachers", {"a": np.zeros(1)}, settings={})
    message = (
        f"{tmp_path}/b: this shard was made from another data than {tmp_path}/c"
        f" ({given.content[:12]} against {other.content[:12]}): delete {tmp_path}/b and run again"
    )
    with pytest.raises(ArtifactError) as caught:
        made.require_input("data", other)
    assert str(caught.value) == message
    with pytest.raises(ArtifactError, match=r"another pool than .* \(None against"):
        made.require_input("pool", given)


def test_arrays_are_read_when_they_are_asked_for_and_checked_then(tmp_path):
    path = tmp_path / "one.zarr.zip"
    big = {"small": np.arange(5), "large": np.arange(200_000).reshape(2, -1)}
    store.write(path, "data", big, settings={})
    found = store.read(path, "data", lazy=True)
    assert found.shapes == {"small": (5,), "large": (2, 100_000)}
    assert set(found.arrays) == set(big) and "other" not in found.arrays
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as members:
        chunk = next(m for m in members.infolist() if m.filename.startswith("large/c"))
    whole[chunk.header_offset + chunk.compress_size // 2 + 80] ^= 1
    path.write_bytes(whole)
    assert np.array_equal(found.arrays["small"], big["small"])
    with pytest.raises(ArtifactError, match=r"delete .*one\.zarr\.zip and run snakemake again"):
        found.arrays["large"]


def test_digests_that_do_not_make_the_content_are_refused(tmp_path):
    path = tmp_path / "one.zarr.zip"
    with ZipStore(path, mode="w") as file:
        attributes = {"format": store.FORMAT, "kind": "data", "content": "0" * 64, "digests": {}}
        zarr.create_group(file, attributes=attributes)
    assert "do not match their checksum" in refusal(path, "data")


def test_an_evaluation_does_not_read_the_training_images(digits, tmp_path, cpu):
    data = PreparedData.open(digits.artifact.path)
    data.examples("test", cpu)
    assert data.shape.classes == 10 and data.train_bytes > 0
    assert set(data.artifact.arrays._read) == {
        *("test_images", "test_labels", "whitening_mean", "whitening_matrix")
    }
