"""Secrets in experiment files, on the command line and in patches are found, and no message repeats them."""

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
from tests.support.evidence import Tally
from tests.support.workspace import Workspace
from tests.trust import canaries

CORE = "q7Xw9KfLm2RtVb8ZnC4dYs6H"  # a value that no message may contain
HEX = "0123456789abcdef0123456789abcdef01234567"
KEYS = (
    *("api_key", "WANDB_API_KEY", "wandbApiKey", "api-key", "token", "hf_token", "HF_TOKEN", "auth", "auth_token"),
    *("password", "db_password", "PGPASSWORD", "passwd", "DB_PWD", "secret", "client_secret", "AWS_SECRET_ACCESS_KEY"),
    *("private_key", "credentials", "bearer", "access_key", "passphrase", "jwt", "password2"),
    *("DB_PASS", "OPENAI_KEY", "WANDB_KEY", "GITHUB_PAT", "HF_TOKEN_READ", "PASSWORD_PROD", "api_keys"),
    "access_tokens",
)
HARMLESS: dict[str, Any] = {
    **{"tokenizer": "gpt2", "max_tokens": 100, "eval_tokens": 20, "pad_token": "<pad>", "eos_token": "</s>"},
    **{"token_dropout": 0.1, "tokens_per_step": 64, "author": "me", "n_kv_head": 2, "key_size": 16, "per_token": "x"},
    **{"secret": None, "use_auth": True, "auth": False, "token": "", "keys": "a b", "monkey": "see", "max_token": 512},
    **{"token_file": "~/.token", "revision": "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3", "special_token": "[X]"},
    **{"url": "https://example.org/data", "ssh": "git@github.com:x/y", "bearing": "north", "password": "{stdin}"},
    "args": ["--token", "{token}", "--auth", "--max-token", 5, "--password", "$PASSWORD", "--api-key", None, "--jwt"],
    **{"sort_key": "x", "text_key": "text", "token_count": "9", "tokens": "a b", "bypass": "x", "compass": "north"},
    **dict.fromkeys(("n_pass", "one_pass", "second_pass", "key", "keys_test", "pad_token_test", "pat", "test"), "x"),
    **{"input_key": "image", "password_file": "$HOME/.x", "db_password": "{user}{stdin}", "passwd": "$HOME/x"},
    **{"jwt": "(?i)x", "last_token_read": "x", "max_token_test": "x"},
    **{"description": "the token is masked; no secret = no leak", "pattern": r"token=(?P<iter>\d+)"},
}
# Values whose form gives them away; put together here, so that no scanner takes this file for a leak
FORMS = (
    *(f"{prefix}{CORE}{CORE[:10]}" for prefix in ("hf_", "sk-", "xoxb-", "xapp-1-", "npm_aB", "ya29.", "dckr_pat_")),
    *(f"ghp_{CORE}", f"github_pat_{CORE}", f"glpat-{CORE}", f"AKIA{CORE[:16].upper()}", f"pypi-AgEIcHlwaS5vcmc{CORE}"),
    *(f"sk_live_{CORE}", f"rk_live_{CORE}", f"wandb_v1_{CORE}", f"wandb login {HEX}"),
    f"https://hooks.slack.com/services/T{CORE[:9]}/B{CORE[:9]}/{CORE}",
    f"eyJ{CORE[:17]}.eyJ{CORE}.{CORE}",
    f"-----BEGIN RSA PRIVATE KEY-----\n{CORE}",
    f"https://user:{CORE}@example.org/simple",
    f"http://:{CORE}@proxy:3128",
    f"curl -H 'Authorization: Bearer {CORE}' example.org",
)
PLACES: tuple[dict[str, Any], ...] = (
    {"base": {"api_key": CORE}},
    {"base": {"group": {"api_key": CORE}}},
    {"base": {"group.api_key": CORE}},
    {"base": {"list": [1, {"api_key": CORE}]}},
    {"base": {"api_key": CORE}, "mem": CORE, "seeds": CORE},  # other mistakes, whose messages show values
    {"features": {"other": {"api_key": CORE}}},
    {"features": {"other": {"levels": {"low": {"api_key": CORE}, "high": {"lr": 2}}}}},
    {"vars": {"api_key": CORE}},
    {"configs": {"large": {"base": {"api_key": CORE}}}},
    {"experiment_info": {"api_key": CORE}},
    {"slurm": {"extra": {"api_key": CORE}}},
    {"slurm": {"setup": ["module load cuda", f"export API_KEY={CORE}"]}},
    {"slurm": {"setup": f"x --db-password {CORE}".split()}},
    {"slurm": {"setup": f"wandb login {HEX}".split()}},
    {"slurm": {"setup": f"curl -H Authorization: Bearer {CORE}".split()}},
    {"env": {"API_KEY": CORE}},
    {"env": {"ARGUMENTS": ["--lr", 1, "-api-key", CORE]}},
    {"command": f"python train.py --api-key={CORE} --steps=3"},
    {"command": ["python", "train.py", f"--api-key={CORE}"]},
    {"resume_command": ["python", "train.py", "--api-key", CORE, "--out", "{run_dir}"]},
)


def refusal(path: Path, *sets: str) -> str:
    with pytest.raises((ConfigError, UserError)) as caught:
        load_experiment(path, sets)
    return str(caught.value)


def refuse(folder: Path, part: dict[str, Any]) -> None:
    path = folder / "study.yaml"
    study = {"name": "study", "command": "python x.py {flags}", "design": ["baseline"], "base": {"lr": 1}}
    path.write_text(yaml.safe_dump(study | part, sort_keys=False, width=10**6))
    message = refusal(path)
    assert f"{path}:" in message and "export: [WANDB_API_KEY]" in message
    assert CORE not in message and CORE[:16].upper() not in message and HEX not in message


@pytest.mark.parametrize("part", PLACES, ids=[str(number) for number in range(len(PLACES))])
def test_a_secret_is_refused_at_any_place(tmp_path: Path, part: dict[str, Any]) -> None:
    refuse(tmp_path, part)


@pytest.mark.parametrize("key", KEYS)
def test_a_secret_is_known_by_its_name(tmp_path: Path, key: str) -> None:
    refuse(tmp_path, {"base": {key: CORE}})


@pytest.mark.parametrize("value", FORMS, ids=[str(number) for number in range(len(FORMS))])
def test_a_secret_is_known_by_its_form(tmp_path: Path, value: str) -> None:
    refuse(tmp_path, {"base": {"note": value}})


@pytest.mark.parametrize(
    "text",
    [
        *(f"base.token={CORE}", f"token={CORE}", f"vars.token={CORE}", f"token={{x{CORE}", f"x={FORMS[0]}"),
        f"command=[python, train.py, --token, {CORE}, '{{flags}}']",
    ],
)
def test_a_secret_on_the_command_line_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: study\nbase: {}\n")
    message = refusal(path, text)
    assert message.startswith("--set ") and "export: [WANDB_API_KEY]" in message
    assert CORE not in message


@pytest.mark.parametrize("text", ["${env:HF_TOKEN}", "x ${env:MY_PASSWORD,none} y", "${ env:WANDB_API_KEY}"])
def test_a_secret_of_the_environment_is_not_read(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "MY_PASSWORD", "WANDB_API_KEY"):
        monkeypatch.setenv(name, CORE)
    path = tmp_path / "study.yaml"
    path.write_text(f"name: study\nbase:\n  note: '{text}'\n")
    message = refusal(path)
    assert f"{path}:3: base.note: ${{env:" in message and CORE not in message


@pytest.mark.parametrize(
    "line",
    ["base: {note: '${env:FOO}'}", "base: {api_key: '${env:BAR}'}", f"vars: {{a: {CORE}}}\nbase: {{token: '${{a}}'}}"],
)
def test_what_an_expression_becomes_is_scanned(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A harmless name that is filled with a token, and a secret name that is filled from a harmless one."""
    monkeypatch.setenv("FOO", f"ghp_{CORE}")
    monkeypatch.setenv("BAR", CORE)
    path = tmp_path / "study.yaml"
    path.write_text(f"name: study\ncommand: python x.py {{flags}}\n{line}\n")
    message = refusal(path)
    assert "looks like a GitHub token" in message or "its name says" in message
    assert CORE not in message


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
    assert all(secrets.is_secret_name(name.replace(" ", "_")) for name in secrets.PHRASES)
    tally("settings that only sound like secrets pass", len(HARMLESS) + len(own), "0 refused")


def test_a_setting_that_only_looks_like_a_secret_can_be_permitted(tmp_path: Path) -> None:
    text = "name: s\ncommand: python x.py {{flags}}\ndesign: [baseline]\n{}metrics: {{csv: x}}\n"
    text += "base: {{secret: santa, token: y}}\n"
    path = tmp_path / "study.yaml"
    path.write_text(text.format(""))
    problems = refusal(path).splitlines()
    assert len(problems) == 2 and "`not_secret: [secret]`" in problems[0]
    path.write_text(text.format("not_secret: [secret, base.token]\n"))
    assert load_experiment(path).experiment.base == {"secret": "santa", "token": "y"}


def test_the_command_line_reports_it_in_one_line(workspace: Workspace) -> None:
    study = canaries.write_study(workspace, env={"WANDB_API_KEY": "0123456789abcdef"})
    refused = workspace.run("submit", study, "--launcher", "local", code=2)
    (line,) = refused.stderr.splitlines()
    assert "study.yaml:" in line and "env.WANDB_API_KEY" in line and "0123456789abcdef" not in line


# ---- patches

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


@pytest.mark.parametrize("sign", ["+", "-", " "])
@pytest.mark.parametrize(
    ("file", "line"),
    [
        *(("x.py", f'{key} = "{CORE}"') for key in KEYS),
        *(("x.py", line) for line in (f"token: '{CORE}'", f'{{"token": "{CORE}"}}', f"u = 'https://me:{CORE}@h.org'")),
        *(("a b.yaml", line) for line in (f"token: {CORE}", f"  - token: {CORE}", f"export TOKEN={CORE}")),
        *((name, CORE) for name in (".env", "conf/prod.env", "id_rsa", "a.pem", ".netrc", "secrets.yaml")),
        ("x.sh", f"-----BEGIN PRIVATE KEY-----\n+{CORE}\n+{CORE}\n+-----END PRIVATE KEY-----"),
    ],
)
def test_secrets_are_masked_in_a_patch(file: str, line: str, sign: str) -> None:
    patch = PATCH.format(file=file, lines=f"{sign}{line}")
    masked = secrets.mask_patch(patch)
    assert CORE not in masked
    assert masked.partition("diff --git a/models")[2] == patch.partition("diff --git a/models")[2], "code was changed"


GIT_SETTINGS = (
    *("color.ui=always", "color.diff=always", "diff.noprefix=true", "diff.mnemonicPrefix=true", "diff.external=cat"),
    *("core.quotePath=false", "diff.renames=copies", "diff.context=90", "diff.interHunkContext=90"),
    "diff.lab.command=cat",
    *("diff.algorithm=histogram", "diff.wsErrorHighlight=all", "diff.colorMoved=zebra", "diff.submodule=log"),
    *("diff.lab.textconv=tac", "diff.lab.xfuncname=.*", "diff.relative=true", "diff.srcPrefix=x/", "diff.dstPrefix=y/"),
)


def dirty_checkout(folder: Path) -> None:
    """Secrets in what is committed, changed, moved, of unusual names, and in the line that heads a hunk."""
    subprocess.run(["git", "init", "-q", folder], check=True)
    lines = [f"db_password: {CORE}", *(f"  line: {number}" for number in range(40))]
    for name in ("settings.yaml", "é b.yaml", ".env", "x\ty.pem"):
        (folder / name).write_text("\n".join(lines))
    (folder / ".gitattributes").write_text("* diff=lab\n")
    git = ["git", "-C", folder, "-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    lines[1:3] = [f"  hf_token: {CORE}", f'  url: "https://me:{CORE}@example.org"']
    for name in ("settings.yaml", "é b.yaml", "x\ty.pem"):
        (folder / name).write_text("\n".join([*lines[:30], "  other: 1", *lines[31:]]))
    subprocess.run(["git", "-C", folder, "mv", ".env", "notes.txt"], check=True)


def test_the_patch_does_not_depend_on_the_settings_of_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    checkout = tmp_path / "checkout"
    monkeypatch.setattr(code_snapshot, "code_root", lambda: checkout)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    dirty_checkout(checkout)
    patches = set()
    for number, setting in enumerate(("core.bare=false", *GIT_SETTINGS)):
        (tmp_path / ".gitconfig").write_text("")
        subprocess.run(["git", "config", "--global", *setting.split("=")], check=True)
        store = tmp_path / str(number)
        store.mkdir()
        provenance.save_patch(store / "code")
        patches.add((store / "code.patch").read_text())
    (patch,) = patches
    assert CORE not in patch and patch.count(secrets.MASK) >= 6 and patch.count("# left out: the name says") == 2
    tally("the patch of a dirty tree is the same under any settings of git", len(GIT_SETTINGS), "0 secrets in it")


@pytest.mark.parametrize("header", ["\x1b[1mdiff --git a/x b/x", "diff --git x.yaml x.yaml", "diff --cc x.yaml", "x"])
def test_lines_of_an_unknown_file_are_left_out(header: str) -> None:
    known = "diff --git a/x.py b/x.py\n+lr = 1\n"
    assert secrets.mask_patch(f"{header}\n+x: hunter2-canary\n{known}") == (
        f"# left out: cannot tell which file these lines belong to\n{known}"
    )
