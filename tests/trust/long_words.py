"""Long texts of one word again and again, made to keep the search for secrets busy.

As a program (`python -m tests.trust.long_words SIZE`) it searches them all within a limit of time; prints how many.
"""

from __future__ import annotations

import resource
import sys

from ablatrix.orchestrator.study import secrets

SECONDS = 6  # of one core, for each text
WORDS = (
    *(
        "a",
        "A",
        "aA",
        "0f",
        "_",
        "é",
        "\0",
        "\r",
        "\\",
        " ",
        "\t",
        "\n",
        " \n",
        "a \n",
        "+\n",
        "+a\n",
        "-",
        "--a",
        "--a ",
    ),
    *(
        "-a ",
        "+ - ",
        "a.",
        "a-",
        "a+",
        "a=",
        "=",
        "a: ",
        "'",
        '"',
        "a:'",
        'a="',
        "a='b=\"",
        '"a":',
        "{",
        "{a",
        "${",
        "$(",
        "<",
    ),
    *("*", "(?", "`", "@", "://", "a://b:", "http://u:p", "a:b@", "eyJ-", "eyJaaaaaaaa.", "token.eyJ", "sk-", "sk-a "),
    *("hf_", "ghp_", "xox", "AIza", "api_key.", "token_", "password", "password=", "password ", "export ", "wandb "),
    *("wandb login ", "wandb login -a ", "-wandb login ", "authorization ", "authorization:", "authorization: bearer"),
    *(
        "-----BEGIN ",
        "-----BEGIN A",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n",
        "@@ ",
        "@@ -1 +1 @@ x\n",
    ),
    *("diff --git ", "diff --git a/x b/x\n", " b/", "a/ b/"),
)


def main(size: int) -> None:
    """Every public function that looks for secrets, on every text of `size` characters. A signal ends a slow one."""
    for word in WORDS:
        text = (word * size)[:size]
        for search in (
            lambda text: secrets.form(text, "x_key"),
            lambda text: secrets.masked(f"diff --git a/x b/x\n+{text}!"),
            lambda text: secrets.masked(f"diff --git a/{text}"),
            lambda text: secrets.literal("api_key", text),
            lambda text: secrets.given([f"--{text}", text]),
            secrets.name,
            secrets.assigned,
        ):
            spent = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (spent + SECONDS, resource.RLIM_INFINITY))
            search(text)
    print(len(WORDS))


if __name__ == "__main__":
    main(int(sys.argv[1]))
