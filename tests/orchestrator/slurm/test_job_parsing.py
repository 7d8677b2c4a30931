"""What Slurm's commands print, as jobs: array ranges, cut words, foreign users, silence."""

import os
import stat
from pathlib import Path

import pytest

from ablatrix.orchestrator.slurm import commands, job_parsing


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("123", ["123"]),
        ("123_4", ["123_4"]),
        ("123_[4-6%2]", ["123_4", "123_5", "123_6"]),
        ("123_[0,3-4,8-12:2%1]", ["123_0", "123_3", "123_4", "123_8", "123_10", "123_12"]),
        ("123_[7]", ["123_7"]),
        ("123_[0-3", ["123_0", "123_1", "123_2", "123_3"]),
        ("12+0", ["12+0"]),
    ],
)
def test_array_ranges(text: str, ids: list[str]) -> None:
    assert list(job_parsing.expand(text)) == ids


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("RUNNING", "RUNNING"),
        ("CANCELLED by 1000", "CANCELLED"),
        ("NODE_FAIL", "NODE_FAIL"),
        ("SOMETHING_NEW", "SOMETHING_NEW"),
    ],
)
def test_state_words(word: str, state: str) -> None:
    assert job_parsing.full_state(word) == state


def test_squeue_lines() -> None:
    text = """\
8_[5-6%7]|PENDING|me||(Resources)|ablatrix:0123456789abcdef
8_1|RUNNING|me|node3|None|ablatrix:0123456789abcdef
9|RUNNING|other|node3|None|ablatrix:0123456789abcdef
10|PENDING|me||Dependency|a | b
torn li
"""
    jobs = job_parsing.parse_squeue(text, "me")
    assert sorted(jobs) == ["10", "8_1", "8_5", "8_6"]
    assert jobs["8_5"].token == "0123456789abcdef"
    assert jobs["8_1"].node == "node3"
    assert jobs["10"].comment == "a | b"
    assert jobs["10"].token is None


def test_scontrol_lines() -> None:
    text = (
        "JobId=12 ArrayJobId=10 ArrayTaskId=1 JobName=x UserId=me(1) JobState=FAILED Reason=NonZeroExitCode "
        "ExitCode=0:53 NodeList=node1 Comment=ablatrix:0123456789abcdef StdOut=/a b/c.out Power=\n"
        "JobId=10 ArrayJobId=10 ArrayTaskId=2-3%5 JobName=x JobState=CANCELLED Reason=None ExitCode=0:0 "
        "NodeList=(null)\n"
        "JobId=14 JobName=y JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15 NodeList=node2\n"
    )
    jobs = job_parsing.parse_scontrol(text)
    assert sorted(jobs) == ["10_1", "10_2", "10_3", "14"]
    assert jobs["10_1"].exit_code == "0:53"
    assert jobs["10_1"].token == "0123456789abcdef"
    assert jobs["10_2"].state == "CANCELLED"
    assert jobs["10_2"].node == ""
    assert jobs["14"].state == "TIMEOUT"


def test_sacct_lines() -> None:
    jobs = job_parsing.parse_sacct("10_1|OUT_OF_MEMORY|0:125|node1\n10_[2-3]|CANCELLED by 0|0:0|None assigned\nx\n")
    assert {key: job.state for key, job in jobs.items()} == {
        "10_1": "OUT_OF_MEMORY",
        "10_2": "CANCELLED",
        "10_3": "CANCELLED",
    }


def test_failing_commands_speak_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "squeue"
    script.write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error:' >&2\necho 'Unable to contact slurm controller' >&2\nexit 1\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        commands.ControllerError, match="squeue: slurm_load_jobs error: Unable to contact slurm controller"
    ):
        commands.queue()
    script.write_text("#!/bin/sh\nexec /bin/sleep 5\n")
    with pytest.raises(commands.ControllerError, match="did not answer"):
        commands.run_command(["squeue"], timeout=0.1)
    script.unlink()
    with pytest.raises(commands.ControllerError, match="not found"):
        commands.run_command(["squeue"])
    monkeypatch.setenv("SLURM_CONF", f"{tmp_path}/missing.conf")  # Slurm's own commands look for it for a minute
    with pytest.raises(commands.ControllerError, match=r"SLURM_CONF names .*missing\.conf, which does not exist"):
        commands.run_command(["squeue"])


@pytest.mark.parametrize(
    ("said", "knows"),
    [
        ("echo node", True),
        ("echo 'scontrol: fatal: Unable to process configuration file' >&2; exit 1", True),
        ("echo 'scontrol: fatal: Could not establish a configuration source' >&2; exit 1", False),
    ],
)
def test_commands_without_a_configuration_are_no_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, knows: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not commands.belongs_to_cluster()
    for name in ("sbatch", "scontrol"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{said}\n")
        (tmp_path / name).chmod(0o755)
    assert commands.belongs_to_cluster() is knows


def test_a_task_that_its_array_no_longer_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known from a real cluster without a database: a cancelled waiting task is dropped from the array's line."""
    line = "JobId=12 ArrayJobId=12 ArrayTaskId=0-2 JobName=x UserId=me(1) JobState=PENDING ExitCode=0:0"
    for name, script in (("scontrol", f"[ $4 = 12 ] && echo '{line}'"), ("sacct", "exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = commands.ended_jobs(["12_1", "12_3", "13_0"])
    assert {job_id: job.state for job_id, job in found.items()} == {"12_1": "PENDING", "12_3": job_parsing.VANISHED}


def test_an_array_that_was_cancelled_before_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm keeps one record without a task's number (NO_VAL) for all of them."""
    line = "JobId=12 ArrayJobId=12 ArrayTaskId=4294967294 JobName=x JobState=CANCELLED ExitCode=0:0"
    other = "JobId=13 JobName=y JobState=COMPLETED ExitCode=0:0"
    script = f"case $4 in 12) echo '{line}' ;; 13) echo '{other}' ;; esac"
    for name, text in (("scontrol", script), ("sacct", "exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = commands.ended_jobs(["12_0", "12_7", "13_0"])
    assert {job_id: (job.id, job.state) for job_id, job in found.items()} == {
        "12_0": ("12_0", "CANCELLED"),
        "12_7": ("12_7", "CANCELLED"),
    }


@pytest.mark.parametrize(
    ("shown", "token"),
    [
        ("ablatrix:0123456789abcdef", "0123456789abcdef"),
        ("project 7; ablatrix:0123456789abcdef|/a b/s/logs/fedcba9876543210.sbatch", "0123456789abcdef"),
        ("set by the site|/a b/s/logs/0123456789abcdef.sbatch", "0123456789abcdef"),
        ("ablatrix:0123456|/s/logs/0123456789abcdef-report.sbatch", "0123456789abcdef"),
        ("|/s/logs/submitit/0123456789abcdef/submission_file_1.sh", "0123456789abcdef"),
        ("(null)|/home/me/0123456789abcdef/job.sh", None),
    ],
)
def test_our_mark_is_in_the_comment_or_in_the_path_of_the_script(shown: str, token: str | None) -> None:
    assert job_parsing.parse_squeue(f"8|PENDING|me||Priority|{shown}\n", "me")["8"].token == token


def test_the_user_is_the_one_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LOGNAME may be that of another user: after su, in a container."""
    (tmp_path / "squeue").write_text('#!/bin/sh\necho "$*" >&2\necho "8|RUNNING|$(id -un)||None|"\n')
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert list(commands.queue()) == ["8"]


def test_numbers_in_the_answer_of_sbatch() -> None:
    from ablatrix.orchestrator.slurm.sbatch import _find_ids

    assert _find_ids("Jobs of yours in the queue:\n17\n2026\n4711;alpha\n") == ["4711", "2026", "17"]
    assert _find_ids("Submitted batch job 4711 on cluster beta\n") == ["4711"]
    assert _find_ids("\x1b[1;32m4711\x1b[0m \r\n83% of your budget is used\n") == ["4711"]
    assert _find_ids("no number\n") == []


def test_a_cluster_that_is_full_has_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch sleeps and tries again by itself, for longer than we wait."""
    words = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\necho '{words}' >&2\nexec sleep 30\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(commands.ControllerError, match="unable to accept job") as raised:
        commands.run_command(["sbatch"], timeout=5)
    assert not isinstance(raised.value, commands.NoAnswerError)
