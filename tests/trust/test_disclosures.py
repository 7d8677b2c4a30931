"""Secrets in experiment files and on the command line are refused, without being repeated; what is none is not."""

import random
import string
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ablatrix.orchestrator.store import code_snapshot, provenance
from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.orchestrator.study import secrets
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.trainer.rundir.errors import ConfigError, UserError
from tests.support.evidence import Cases, Tally
from tests.support.workspace import Workspace
from tests.trust import canaries

KEYS = (
    *("api_key", "WANDB_API_KEY", "wandbApiKey", "api-key", "token", "hf_token", "HF_TOKEN", "auth", "auth_token"),
    *("password", "db_password", "PGPASSWORD", "passwd", "DB_PWD", "secret", "client_secret", "AWS_SECRET_ACCESS_KEY"),
    *("private_key", "credentials", "bearer", "access_key", "passphrase", "jwt", "password2"),
    *(
        "DB_PASS",
        "OPENAI_KEY",
        "WANDB_KEY",
        "GITHUB_PAT",
        "HF_TOKEN_READ",
        "PASSWORD_PROD",
        "api_keys",
        "access_tokens",
    ),
)
HARMLESS: dict[str, Any] = {
    **{"tokenizer": "gpt2", "max_tokens": 100, "eval_tokens": 20, "pad_token": "<pad>", "eos_token": "</s>"},
    **{"token_dropout": 0.1, "tokens_per_step": 64, "author": "me", "n_kv_head": 2, "key_size": 16, "per_token": "x"},
    **{"secret": None, "use_auth": True, "auth": False, "token": "", "keys": "a b", "monkey": "see", "max_token": 512},
    **{"token_file": "~/.token", "revision": "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3", "special_token": "[X]"},
    **{"url": "https://example.org/data", "ssh": "git@github.com:x/y", "bearing": "north", "password": "{stdin}"},
    **{
        "args": [
            "--token",
            "{token}",
            "--auth",
            "--max-token",
            5,
            "--password",
            "$PASSWORD",
            "--api-key",
            None,
            "--jwt",
        ]
    },
    **{"sort_key": "x", "text_key": "text", "token_count": "9", "tokens": "a b", "bypass": "x", "compass": "north"},
    **{
        "n_pass": "two",
        "one_pass": "x",
        "second_pass": "x",
        "key": "x",
        "keys_test": "x",
        "pad_token_test": "x",
        "pat": "x",
    },
    **{
        "test": "x",
        "max_token_test": "x",
        "input_key": "image",
        "password_file": "$HOME/.x",
        "db_password": "{user}{stdin}",
        "passwd": "$HOME/x",
        "jwt": "(?i)x",
        "last_token_read": "x",
    },
    **{"description": "the token is masked; no secret = no leak", "pattern": r"token=(?P<iter>\d+)"},
}


def letters(rng: random.Random, count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(rng.choices(alphabet, k=count))


def known_form(rng: random.Random) -> str:
    """A random secret of a form that says what it is."""
    upper, lower = string.ascii_uppercase + string.digits, "0123456789abcdef"
    return rng.choice(
        [
            f"hf_{letters(rng, 34)}",
            f"sk-{letters(rng, 40)}",
            f"ghp_{letters(rng, 36)}",
            f"github_pat_{letters(rng, 22)}",
            f"glpat-{letters(rng, 20)}",
            f"AKIA{letters(rng, 16, upper)}",
            f"xoxb-{letters(rng, 24)}",
            f"xapp-1-{letters(rng, 24)}",
            f"pypi-AgEIcHlwaS5vcmc{letters(rng, 40)}",
            f"npm_{letters(rng, 36)}",
            f"{rng.choice('sr')}k_live_{letters(rng, 24)}",
            f"wandb_v1_{letters(rng, 40)}",
            f"dckr_pat_{letters(rng, 27)}",
            f"ya29.{letters(rng, 40)}",
            f"https://hooks.slack.com/services/T{letters(rng, 9)}/B{letters(rng, 9)}/{letters(rng, 24)}",
            f"eyJ{letters(rng, 17)}.eyJ{letters(rng, 30)}.{letters(rng, 40)}",
            f"-----BEGIN RSA PRIVATE KEY-----\n{letters(rng, 64)}",
            f"https://user:{letters(rng, 16)}@example.org/simple",
            f"http://:{letters(rng, 16)}@proxy:3128",
            f"wandb login {letters(rng, 40, lower)}",
            f"curl -H 'Authorization: Bearer {letters(rng, 30)}' example.org",
        ]
    )


def plant(rng: random.Random, key: str, value: Any) -> dict[str, Any]:
    """An experiment with the value under the key, somewhere."""
    nested = rng.choice([{key: value}, {"group": {key: value}}, {f"group.{key}": value}, {"list": [1, {key: value}]}])
    places = [
        {"base": nested},
        {"features": {"other": nested}},
        {"features": {"other": {"levels": {"low": nested, "high": {"lr": 2}}}}},
        {"vars": {key: value}},
        {"configs": {"large": {"base": nested}}},
        {"experiment_info": {key: value}},
        {"slurm": {"extra": {key: value}}},
    ]
    if isinstance(value, str) and "\n" not in value and "'" not in value:
        places += [
            {"env": {key: value}},
            {"slurm": {"setup": ["module load cuda", f"export {key.replace('-', '_')}={value}"]}},
            {"command": f"python train.py --{key}={value} --steps=3"},
            {"command": ["python", "train.py", f"--{key}={value}"]},
            {
                rng.choice(["command", "resume_command"]): [
                    "python",
                    "train.py",
                    f"--{key}",
                    value,
                    "--out",
                    "{run_dir}",
                ]
            },
            {"env": {"ARGUMENTS": ["--lr", 1, rng.choice(["-", "--"]) + key, value]}},
        ]
    return rng.choice(places)


def refusal(path: Path, sets: list[str]) -> str:
    with pytest.raises((ConfigError, UserError)) as caught:
        load_experiment(path, sets)
    return str(caught.value)


def test_secrets_are_refused_wherever_they_stand(tmp_path: Path, cases: Cases, seed: int, tally: Tally) -> None:
    rng, count, path = random.Random(seed), cases(150, 2000), tmp_path / "study.yaml"
    for number in range(count):
        core = letters(rng, 24)
        key, value = rng.choice(KEYS), core
        if number % 2:
            value = known_form(rng)
            key = rng.choice(["option", "x", "data_path", "note"])
            core = max(value.replace("'", " ").replace("@", " ").replace(":", " ").split(), key=len).strip("-/")
        study = {"name": "study", "command": "python x.py {flags}", "design": ["baseline"], "base": {"lr": 1}}
        # neighbours with mistakes of their own, whose messages could show values
        study |= rng.choice([{}, {"mem": value}, {"seeds": value}, {"unknown": 1}])
        path.write_text("# a file\n" + yaml.safe_dump(study | plant(rng, key, value), sort_keys=False, width=10**6))
        said = refusal(path, [])
        assert core not in said and value not in said, said
        assert f"{path}:" in said and "export: [WANDB_API_KEY]" in said, (key, said)
    tally("secrets in an experiment file are refused with file, line and key", count, "0 let in, 0 values repeated")


def test_secrets_on_the_command_line_are_refused(tmp_path: Path, cases: Cases, seed: int, tally: Tally) -> None:
    rng, count, path = random.Random(seed), cases(60, 1000), tmp_path / "study.yaml"
    path.write_text("name: study\nbase: {}\n")
    for _ in range(count):
        core, key = letters(rng, 24), rng.choice(KEYS)
        text = rng.choice(
            [
                *(
                    f"base.{key}={core}",
                    f"{key}={core}",
                    f"vars.{key}={core}",
                    f"{key}={{x{core}",
                    f"x={known_form(rng)}",
                ),
                f"command=[python, train.py, --{key}, {core}, '{{flags}}']",
            ]
        )
        said = refusal(path, [text])
        assert core not in said and text.partition("=")[2] not in said, said
        assert said.startswith("--set ") and "export: [WANDB_API_KEY]" in said
    tally("secrets given by --set are refused", count, "0 let in, 0 values repeated")


@pytest.mark.parametrize("text", ["${env:HF_TOKEN}", "x ${env:MY_PASSWORD,none} y", "${ env:WANDB_API_KEY}"])
def test_a_secret_of_the_environment_is_not_read(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "MY_PASSWORD", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "kept-to-myself")
    path = tmp_path / "study.yaml"
    path.write_text(f"name: study\nbase:\n  note: '{text}'\n")
    said = refusal(path, [])
    assert f"{path}:3: base.note: ${{env:" in said and "kept-to-myself" not in said


def test_what_variables_become_is_judged_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A neutral name that holds a token, and a secret name that is filled from a neutral one."""
    rng = random.Random(seed)
    monkeypatch.setenv("FOO", f"ghp_{letters(rng, 36)}")
    monkeypatch.setenv("BAR", letters(rng, 20))
    path = tmp_path / "study.yaml"
    command = "name: study\ncommand: python x.py {flags}\n"
    for line in ("base: {note: '${env:FOO}'}", "base: {api_key: '${env:BAR}'}", "vars: {a: x1}\nbase: {token: '${a}'}"):
        path.write_text(f"{command}{line}\n")
        said = refusal(path, [])
        assert "looks like a GitHub token" in said or "its name says" in said
        assert not any(value in said for value in ("ghp_", "x1"))


@pytest.mark.parametrize("words", ["wandb login {}", "curl -H Authorization: Bearer {}", "x --db-password {}"])
def test_neighbours_in_a_list_are_judged_together(words: str, tmp_path: Path, seed: int) -> None:
    path, core = tmp_path / "study.yaml", letters(random.Random(seed), 40, "0123456789abcdef")
    path.write_text(yaml.safe_dump({"name": "x", "slurm": {"setup": words.format(core).split()}}))
    assert f"{path}:" in (said := refusal(path, [])) and core not in said


@pytest.mark.parametrize("value", ["$Ecret1", "{abc}hunter2", "(?hunter2", "***x", "<a>b", "$HOMEx"])
def test_what_only_begins_like_a_reference_is_a_secret(value: str) -> None:
    assert secrets.is_secret_value("password", value)


def test_what_is_no_secret_passes(tmp_path: Path, tally: Tally) -> None:
    study = {"name": "study", "command": "python x.py {flags}", "design": ["baseline"], "base": dict(HARMLESS)}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study | {"metrics": {"csv": "x.csv"}}))
    load_experiment(path)
    own = [*code_root().glob("experiments/*.yaml"), *code_root().glob("docs/recipes/*.yaml")]
    for file in own:
        if "name" in yaml.safe_load(file.read_text()):
            load_experiment(file)
    assert not [name for name in secrets.PHRASES if not secrets.is_secret_name(name.replace(" ", "_"))]
    tally("settings that only sound like secrets pass", len(HARMLESS) + len(own), "0 refused")


def test_a_setting_that_only_looks_like_a_secret_can_be_let_in(tmp_path: Path) -> None:
    text = "name: s\ncommand: python x.py {{flags}}\ndesign: [baseline]\n{}metrics: {{csv: x}}\n"
    text += "base: {{secret: santa, token: y}}\n"
    path = tmp_path / "study.yaml"
    path.write_text(text.format(""))
    said = refusal(path, []).splitlines()
    assert len(said) == 2 and "`not_secret: [secret]`" in said[0]
    path.write_text(text.format("not_secret: [secret, base.token]\n"))
    assert load_experiment(path).experiment.base == {"secret": "santa", "token": "y"}


def test_the_command_line_says_it_in_one_line(workspace: Workspace) -> None:
    study = canaries.write_study(workspace, env={"WANDB_API_KEY": "0123456789abcdef"})
    refused = workspace.run("submit", study, "--launcher", "local", code=2)
    (line,) = refused.stderr.splitlines()
    assert "study.yaml:" in line and "env.WANDB_API_KEY" in line and "0123456789abcdef" not in line


PATCH = """\
diff --git a/{file} b/{file}
index 83db48f..bf2a1c3 100644
--- a/{file}
+++ b/{file}
@@ -1,3 +1,4 @@
 first = tokens[0]
{lines}
 last
diff --git a/models/gpt.py b/models/gpt.py
@@ -1 +1,2 @@
+    token = tokens[index]; api_key = os.environ["WANDB_API_KEY"]; password = getpass()
+    pad_token = "<|endoftext|>"; auth: bool = True; tokenizer = "gpt2-medium"; secret = None
"""


def test_secrets_are_masked_in_the_patch_of_a_dirty_tree(cases: Cases, seed: int, tally: Tally) -> None:
    rng, count = random.Random(seed), cases(200, 20_000)
    for number in range(count):
        core, key = letters(rng, 24), rng.choice(KEYS)
        quoted = rng.choice([f'{key} = "{core}"', f"{key}: '{core}'", f'{{"{key}": "{core}"}}'])
        file, line = rng.choice(
            [
                ("x.py", quoted),
                ("a b.yaml", rng.choice([quoted, f"{key}: {core}", f"  - {key}: {core}", f"export {key}={core}"])),
                (rng.choice([".env", "conf/prod.env", "id_rsa", "a.pem", ".netrc", "secrets.yaml"]), core),
                ("x.py", f"url = 'https://me:{core}@example.org'"),
                ("x.sh", f"-----BEGIN PRIVATE KEY-----\n+{core}\n+{core}\n+-----END PRIVATE KEY-----"),
            ]
        )
        patch = PATCH.format(file=file, lines=f"{rng.choice('+- ')}{line}")
        done = secrets.mask_patch(patch)
        assert core not in done, (number, done)
        assert done.partition("diff --git a/models")[2] == patch.partition("diff --git a/models")[2], "code was changed"
    tally("secrets in the patch of a dirty tree are masked", count, "0 left; code that only names them unchanged")


GIT_SETTINGS = (
    *("color.ui=always", "color.diff=always", "diff.noprefix=true", "diff.mnemonicPrefix=true", "diff.external=cat"),
    *(
        "core.quotePath=false",
        "diff.renames=copies",
        "diff.context=90",
        "diff.interHunkContext=90",
        "diff.lab.command=cat",
    ),
    *("diff.algorithm=histogram", "diff.wsErrorHighlight=all", "diff.colorMoved=zebra", "diff.submodule=log"),
    *("diff.lab.textconv=tac", "diff.lab.xfuncname=.*", "diff.relative=true", "diff.srcPrefix=x/", "diff.dstPrefix=y/"),
)


def dirty_checkout(folder: Path, core: str) -> None:
    """Secrets in what is committed, changed, moved, of unusual names, and in the line that stands above a hunk."""
    subprocess.run(["git", "init", "-q", folder], check=True)
    lines = [f"db_password: {core}", *(f"  line: {number}" for number in range(40))]
    for name in ("settings.yaml", "é b.yaml", ".env", "x\ty.pem"):
        (folder / name).write_text("\n".join(lines))
    (folder / ".gitattributes").write_text("* diff=lab\n")
    git = ["git", "-C", folder, "-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    lines[1:3] = [f"  hf_token: {core}", f'  url: "https://me:{core}@example.org"']
    for name in ("settings.yaml", "é b.yaml", "x\ty.pem"):
        (folder / name).write_text("\n".join([*lines[:30], "  other: 1", *lines[31:]]))
    subprocess.run(["git", "-C", folder, "mv", ".env", "notes.txt"], check=True)


def test_the_patch_does_not_depend_on_the_settings_of_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, tally: Tally
) -> None:
    core, checkout = letters(random.Random(seed), 24), tmp_path / "checkout"
    monkeypatch.setattr(code_snapshot, "code_root", lambda: checkout)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    dirty_checkout(checkout, core)
    patches = set()
    for number, setting in enumerate(("core.bare=false", *GIT_SETTINGS)):
        (tmp_path / ".gitconfig").write_text("")
        subprocess.run(["git", "config", "--global", *setting.split("=")], check=True)
        store = tmp_path / str(number)
        store.mkdir()
        provenance.save_patch(store / "code")
        patches.add((store / "code.patch").read_text())
    (patch,) = patches
    assert core not in patch and patch.count(secrets.MASK) >= 6 and patch.count("# left out: the name says") == 2
    tally("the patch of a dirty tree is the same under any settings of git", len(GIT_SETTINGS), "0 secrets in it")


@pytest.mark.parametrize("header", ["\x1b[1mdiff --git a/x b/x", "diff --git x.yaml x.yaml", "diff --cc x.yaml", "x"])
def test_lines_of_an_unknown_file_are_left_out(header: str) -> None:
    known = "diff --git a/x.py b/x.py\n+lr = 1\n"
    assert secrets.mask_patch(f"{header}\n+x: hunter2-canary\n{known}") == (
        f"# left out: cannot tell which file these lines belong to\n{known}"
    )
