from pathlib import Path

import pytest

from benchmarks.offsets import FOLDER, NAMED, capacity_in_name, instances, main, run
from memory_planner.offsets import Infeasible, OffsetError, Proof, read_csv, solve

SIX = [FOLDER / f"{name}.1048576.csv" for name in NAMED]


def test_six_instances_are_found() -> None:
    assert instances([]) == SIX
    assert instances([str(FOLDER)]) == [*SIX, FOLDER / "input.12.csv"]


@pytest.mark.parametrize("path", SIX, ids=NAMED)
def test_instance_is_packed(path: Path) -> None:
    assert run(path, limit_s=600.0).is_packed


@pytest.mark.parametrize("name", ["A", "B", "E", "F"])
def test_full_instance_does_not_fit_a_byte_less(name: str) -> None:
    found = solve(read_csv(FOLDER / f"{name}.1048576.csv"), 1048575)
    assert isinstance(found, Infeasible) and found.proof is Proof.LOAD
    assert found.binding.load_bytes == 1048576


def test_capacity_is_in_the_name() -> None:
    assert capacity_in_name(Path("a/K.2048.csv")) == 2048
    with pytest.raises(OffsetError, match="its name says no capacity"):
        capacity_in_name(Path("a/K.csv"))


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(FOLDER / "input.12.csv")]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 packed" in out and "A to F" not in out
    assert main(["--limit_s=0", str(FOLDER / "E.1048576.csv")]) == 1
    assert "bytes high" in capsys.readouterr().out
    assert main(["nowhere"]) == 2
    assert "nowhere: no such file" in capsys.readouterr().err


def test_infeasible_instance_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "full.3.csv"
    path.write_text("id,lower,upper,size\na,0,2,4\n")
    assert main([str(path)]) == 1
    assert "no packing within 3 bytes" in capsys.readouterr().out
