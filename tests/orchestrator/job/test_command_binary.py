"""TensorBoard's and W&B's files, written here byte by byte as those packages write them, and read back."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablatrix.orchestrator.job.binary_logs import BLOCK
from ablatrix.orchestrator.job.metric_readers import BinaryReader
from ablatrix.orchestrator.job.metric_series import MetricSeries


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def event(step: int, tag: str, value: float, tensor: bool = False) -> bytes:
    """An Event in its frame: a simple value, or a tensor of one number."""
    packed = struct.pack("<f", value)
    scalar = field(8, field(1, 1) + field(5, packed)) if tensor else varint(2 << 3 | 5) + packed
    wall = varint(1 << 3 | 1) + struct.pack("<d", 1.7e9)
    data = wall + field(2, step) + field(5, field(1, field(1, tag.encode()) + scalar))
    return struct.pack("<Q", len(data)) + b"crc1" + data + b"crc2"


def history(step: int, json: bool, **values: float) -> bytes:
    """A HistoryRecord of W&B: numbers of their own as today, or JSON as before."""
    items = b""
    for name, value in values.items():
        number = field(16, repr(value).encode()) if json else varint(6 << 3 | 1) + struct.pack("<d", value)
        key = field(2, b"train") + field(2, name[6:].encode()) if name.startswith("train_") else field(1, name.encode())
        items += field(1, key + number)
    return field(1, 1) + field(2, items + field(2, field(1, step)))


def blocks(records: list[bytes]) -> bytes:
    """LevelDB's log format: a record that does not fit into the rest of a block is split."""
    out = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        first = True
        while first or record:
            left = BLOCK - len(out) % BLOCK
            if left < 7:
                out += b"\0" * left
                continue
            piece, record = record[: left - 7], record[left - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not record]
            out += b"crc!" + struct.pack("<HB", len(piece), kind) + piece
            first = False
    return bytes(out)


def rows(reader: BinaryReader, series: MetricSeries) -> dict[int, dict[str, float]]:
    for found in reader.read():
        series.add(found)
    return dict(series.ordered())


def test_event_files_of_two_attempts(tmp_path: Path) -> None:
    folder = tmp_path / "tb" / "version_0"
    folder.mkdir(parents=True)
    reader, series = BinaryReader(tmp_path / "tb", "tensorboard", {"loss": "my/loss"}), MetricSeries()
    assert rows(reader, series) == {}
    data = event(0, "ignored", 9) + event(1, "my/loss", 3.5) + event(1, "eval/loss", 3.75, tensor=True)
    path = folder / "events.out.tfevents.100.host.1.0"
    path.write_bytes(data + event(2, "my/loss", 3.25)[:-9])
    assert rows(reader, series) == {1: {"loss": 3.5, "val_loss": 3.75}}, "half an event was read"
    path.write_bytes(data + event(2, "my/loss", 3.25) + event(3, "my/loss", 3.0))
    other = BinaryReader(tmp_path / "tb", "tensorboard", {"loss": "my/loss"})
    other.resume(reader.position())
    assert list(rows(other, series)) == [1, 2, 3]
    series.restart()
    (folder / "events.out.tfevents.200.host.2.0").write_bytes(event(2, "my/loss", 2.5))
    assert rows(other, series) == {1: {"loss": 3.5, "val_loss": 3.75}, 2: {"loss": 2.5}}


@pytest.mark.parametrize("json", [True, False])
@pytest.mark.parametrize("padding", [0, 100, BLOCK - 7 - 3, 3 * BLOCK])
def test_an_offline_run_of_wandb(tmp_path: Path, json: bool, padding: int) -> None:
    folder = tmp_path / "offline-run-1"
    folder.mkdir()
    records = [field(5, b"x" * padding)]
    records += [history(step, json, train_loss=4 - step / 8, lr=0.5) for step in range(1, 9)]
    data = blocks(records)
    for written in (len(data) - 20, len(data)):
        (folder / "run-abc.wandb").write_bytes(data[:written])
        reader = BinaryReader(tmp_path, "wandb", {"loss": "train.loss"})
        found = rows(reader, MetricSeries())
    assert found == {step: {"loss": 4 - step / 8, "lr": 0.5} for step in range(1, 9)}


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_whatever_is_there_at_each_look(sizes: list[int]) -> None:
    import tempfile

    data = blocks([field(5, b"x" * 32700), *(history(step, False, train_loss=step) for step in range(1, 30))])
    with tempfile.TemporaryDirectory() as name:
        path, written = Path(name) / "run-1.wandb", 32650
        reader, series = BinaryReader(Path(name), "wandb", {"loss": "train.loss"}), MetricSeries()
        for size in [*sizes, len(data)]:
            written = min(written + size, len(data))
            path.write_bytes(data[:written])
            found = rows(reader, series)
    assert found == {step: {"loss": step} for step in range(1, 30)}


def test_what_tensorboard_itself_writes(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(1, 5):
            writer.add_scalar("train/loss", step / 4, step)
            writer.add_scalar("eval/loss", step / 2, step, new_style=True)
    found = rows(BinaryReader(tmp_path, "tensorboard", {}), MetricSeries())
    assert found == {step: {"loss": step / 4, "val_loss": step / 2} for step in range(1, 5)}
